"""A real browser without a window, driven as a user would."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
MAP = "const map = Bokeh.documents.map((d) => d.get_model_by_name('map')).find(Boolean);"
PLACE = f"""{MAP} const view = Bokeh.index.find_one(map), box = view.el.getBoundingClientRect();
const data = map.renderers[0].data_source.data;
return [box.left + view.frame.x_scale.compute(data.x[arguments[0]]),
        box.top + view.frame.y_scale.compute(data.y[arguments[0]])];"""


class Page:
    """A page opened from disk."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver = driver
        driver.get(path.absolute().as_uri())
        self.wait(lambda: driver.execute_script("return document.querySelector('#legend').children.length > 0"))

    def wait(self, condition: Any, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the page does not get there"
            time.sleep(0.05)

    def run(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def text(self, element: str) -> str:
        return self.run("return document.getElementById(arguments[0]).innerText", element)

    def place(self, row: int) -> tuple[int, int]:
        """Where on the screen the point of ``row`` is."""
        self.run("document.getElementById('map').scrollIntoView()")
        x, y = self.run(PLACE, row)
        return round(x), round(y)

    def point(self, *path: tuple[int, int], drag: bool = False) -> None:
        """Move the mouse along a path, with its button pressed where it drags."""
        from selenium.webdriver.common.action_chains import ActionChains

        actions = ActionChains(self.driver)
        for number, (x, y) in enumerate(path):
            actions.w3c_actions.pointer_action.move_to_location(x, y)
            if drag and number == 0:
                actions.w3c_actions.pointer_action.pointer_down()
        if drag:
            actions.w3c_actions.pointer_action.pointer_up()
        actions.perform()

    def lasso(self) -> None:
        """Take the lasso in hand."""
        self.run(f"{MAP} map.toolbar.active_drag = map.toolbar.tools.find((t) => t.type == 'LassoSelectTool');")

    def errors(self) -> list[str]:
        """What the browser complained of."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self) -> set[str]:
        """The kinds of addresses that were asked for: "file" of the page itself, "data" and "blob" of what is in it."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return {url.partition(":")[0] for url in sent}


@contextmanager
def browser(downloads: Path) -> Iterator[Any]:
    """Chromium; skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "enable-unsafe-swiftshader"):
        options.add_argument(f"--{flag}")
    options.add_argument("--window-size=1280,900")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()
