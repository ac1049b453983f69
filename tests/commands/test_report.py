"""The report: one file that is whole, and does in a real browser what it promises."""

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import mocokit
from mocokit.cli import main
from mocokit.commands import report as module
from mocokit.config import FIELDS, ReportConfig, deciding
from mocokit.data.image_index import Skipped
from mocokit.data.store import write_skipped
from mocokit.deploy.encoder_file import save_encoder
from mocokit.errors import UserError
from mocokit.model.encoder import Encoder, EncoderSpec
from mocokit.reporting import projection
from mocokit.rundir import RunDirectory
from tests.browser import Page, browser
from tests.encoders import ORIGIN
from tests.helpers import encode, noise, write_images
from tests.tiny_runs import TINY, coloured_data

AWKWARD = ["<script>alert(1)</script>.png", "a b.png", "'\"&amp;.png", "日本語.png", "\udcff.png", "x</script>.png"]


def awkward_data(folder: Path) -> Path:
    for split, count in (("train", 20), ("test", 6)):
        for kind in ("cat", "dög <b>" + 90 * "g"):
            names = AWKWARD + [f"{n:03d}.png" for n in range(count - len(AWKWARD))]
            for number, name in enumerate(names):
                path = folder / split / kind / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode(noise(number + 100 * len(kind + split), 12, 10)))
    return folder


@pytest.fixture(scope="module")
def awkward_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("awkward")
    data = awkward_data(folder / "data")
    mocokit.pretrain(str(data), out=str(folder / "run"), **TINY)
    return folder / "run"


@pytest.fixture(scope="module")
def opened(awkward_run, tmp_path_factory):
    mocokit.report(str(awkward_run))
    downloads = tmp_path_factory.mktemp("downloads")
    with browser(downloads) as driver:
        page = Page(driver, awkward_run / "report.html")
        page.downloads = downloads
        yield page


def data_of(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>', html)[1])


@pytest.mark.slow
class TestInABrowser:
    def test_it_opens_without_an_error_or_a_request(self, opened):
        assert opened.errors() == []
        assert opened.requests() <= {"file", "data", "blob"}
        assert opened.run("return document.scripts.length") > 3
        broken = "return [...document.images].filter((i) => !i.complete || !i.naturalWidth).length"
        opened.wait(lambda: opened.run(broken) == 0)
        assert opened.run("return document.images.length") > 100

    def test_pointing_shows_the_image_and_its_neighbours(self, opened, awkward_run):
        data = data_of((awkward_run / "report.html").read_text(encoding="utf-8"))
        for row in (0, 25):
            opened.point(opened.place(row))
            opened.wait(lambda row=row: data["names"][row] in opened.text("beside"))
            shown = opened.run("return [...document.querySelectorAll('#beside .strip figure')].map((f) => f.title)")
            assert shown == [data["names"][near] for near in data["neighbours"][row]]

    def test_lasso_search_colours_and_saving(self, opened):
        opened.lasso()
        x, y = opened.place(3)
        corners = [(-8, -8), (8, -8), (8, 8), (-8, 8), (-8, -7)]
        opened.point(*((x + dx, y + dy) for dx, dy in corners), drag=True)
        opened.wait(lambda: "selected" in opened.text("count"))
        name = opened.run("return JSON.parse(document.getElementById('data').textContent).names[3]")
        assert name in opened.text("chosen").split("\n")

        opened.run(
            "const s = document.getElementById('search'); s.value = '<SCRIPT>'; s.dispatchEvent(new Event('input'))"
        )
        opened.wait(lambda: opened.text("found") == "4 found")
        assert "4 selected" in opened.text("count")
        opened.run("document.getElementById('save').click()")
        saved = opened.downloads / "selected.csv"
        opened.wait(saved.exists)
        with saved.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 4
        assert all(row["image"].endswith("/<script>alert(1)</script>.png") for row in rows)
        assert {row["split"] for row in rows} == {"train", "test"}

        opened.run("const c = document.getElementById('colour'); c.value = 2; c.dispatchEvent(new Event('change'))")
        assert opened.text("legend").split("\n") == ["test (12)", "train (40)"] or "test (12)" in opened.text("legend")
        opened.run("document.querySelector('#legend button').click()")
        opened.wait(lambda: "12 selected" in opened.text("count"))
        assert opened.errors() == []

    def test_what_is_chosen_without_a_mouse_is_shown(self, opened):
        names = opened.run("return JSON.parse(document.getElementById('data').textContent).names")
        search = (
            "const s = document.getElementById('search'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
        )
        opened.run(search, "no such name")
        opened.wait(lambda: "0 found" in opened.text("found"))
        assert "Point at an image" in opened.text("beside")
        opened.run("mocokitReport.choose([7, 3])")
        opened.wait(lambda: names[7] in opened.text("beside"))
        opened.run(search, "no such name at all")
        opened.wait(lambda: "Point at an image" in opened.text("beside"))

    def test_a_link_goes_to_a_heading_that_can_be_seen(self, opened):
        top = "return document.querySelector('#clusters h2').getBoundingClientRect().top"
        opened.run("document.querySelector('a[href=\"#clusters\"]').click()")
        opened.wait(lambda: opened.run(top) < 400)
        assert opened.run(top) >= opened.run("return document.querySelector('nav').getBoundingClientRect().bottom")

    def test_in_the_dark_and_on_paper(self, opened):
        style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        first = "return [...document.querySelectorAll('.curves *')].find((e) => e.offsetHeight > 0).className"
        chart = f".curves .{opened.run(first).split()[0]}"
        media, dark = "Emulation.setEmulatedMedia", [{"name": "prefers-color-scheme", "value": "dark"}]
        try:
            opened.driver.execute_cdp_cmd(media, {"features": dark})
            assert opened.run(style, chart, "backgroundColor") == "rgb(0, 0, 0)"
            opened.driver.execute_cdp_cmd(media, {"media": "print", "features": []})
            assert opened.run(style, chart, "breakInside") == "avoid"
            assert opened.run(style, ".wide", "overflowX") == "visible"
            assert opened.run(style, ".dot", "printColorAdjust") == "exact"
        finally:
            opened.driver.execute_cdp_cmd(media, {"media": "", "features": []})

    def test_it_fits_a_phone(self, opened):
        opened.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        )
        try:
            opened.wait(lambda: opened.run("return document.documentElement.scrollWidth") <= 360)
        finally:
            opened.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_what_it_writes(awkward_run):
    result = mocokit.report(str(awkward_run))
    html = (awkward_run / "report.html").read_text(encoding="utf-8")
    assert result["path"] == str(awkward_run / "report.html")
    assert result["images"] == result["total"] == 52 == sum(result["clusters"])
    assert result["bytes"] == len(html.encode())
    pretrained = json.loads((awkward_run / "results" / "pretrain.json").read_text())
    assert pretrained["verdict"].split(";")[0].replace("'", "&#x27;") in html
    assert "<script>alert" not in html
    outside_scripts = re.sub("<script.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", outside_scripts)
    assert "<link" not in html
    data = data_of(html)
    assert len(data["names"]) == len(data["neighbours"]) == len(data["thumbnails"]) == 52
    assert [colour["name"] for colour in data["colours"]] == ["class", "cluster", "split"]
    assert (awkward_run / "results" / "report.json").exists()
    for key, images in result["suggestions"].items():
        with (awkward_run / "report-lists" / f"{key}.csv").open(encoding="utf-8", newline="") as file:
            assert len(list(csv.DictReader(file))) == images


def test_the_same_run_gives_the_same_map(awkward_run):
    pages = []
    for _ in range(2):
        mocokit.report(str(awkward_run))
        pages.append(data_of((awkward_run / "report.html").read_text(encoding="utf-8")))
    assert pages[0] == pages[1]


@pytest.mark.parametrize("kind", ["three", "gray", "deep", "five", "one class"])
def test_images_of_any_kind(kind, tmp_path, rgb, gray):
    channels = {"gray": 1, "deep": 1, "five": 5}.get(kind, 3)
    data = tmp_path / "data"
    for number in range(3 if kind == "three" else 15):
        path = data / ("only" if kind == "one class" else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = noise(number, 20, 20 + number, channels)
        if kind == "deep":
            Image.fromarray(pixels.astype(np.uint16) * 200).save(path)
        elif kind == "five":
            path = tmp_path / "data.npy"
        else:
            path.write_bytes(encode(pixels))
    if kind == "five":
        data = tmp_path / "data.npy"
        np.save(data, np.stack([noise(n, 20, 20, 5) for n in range(15)]))
    five = EncoderSpec("resnet18_narrow", 24, 5, (0.5,) * 5, (0.25,) * 5, None)
    encoder = {1: gray, 3: rgb}.get(channels) or Encoder.create(five).eval()
    save_encoder(encoder, tmp_path / "encoder.safetensors", ORIGIN)
    result = mocokit.report(str(tmp_path / "encoder.safetensors"), str(data), output=str(tmp_path / "page.html"))
    assert result["images"] == (3 if kind == "three" else 15)
    assert len(data_of((tmp_path / "page.html").read_text())["thumbnails"]) == result["images"]


def test_columns_of_the_labels_colour_the_map(tiny_run, tmp_path):
    names = sorted(p.relative_to(tiny_run.data).as_posix() for p in tiny_run.data.rglob("*.png"))
    lines = [f"{name},c{n % 2},{'left' if n % 3 else 'right'}" for n, name in enumerate(names[:-1])]
    (tmp_path / "labels.csv").write_text("image,label,side\n" + "\n".join(lines) + "\n")
    page = tmp_path / "p.html"
    mocokit.report(str(tiny_run.path), str(tiny_run.data), output=str(page), labels=str(tmp_path / "labels.csv"))
    colours = {colour["name"]: colour for colour in data_of(page.read_text())["colours"]}
    assert colours["side"]["kinds"] == ["left", "right"]
    assert colours["class"]["kinds"] == ["c0", "c1"]
    assert colours["side"]["codes"].count(-1) == 1


def test_refusals(tiny_run, tmp_path, capsys, monkeypatch):
    encoder = str(tiny_run.path / "encoder.safetensors")
    existing = tmp_path / "page.html"
    existing.write_text("mine")
    for arguments, message in {
        (str(tmp_path / "nosuch"),): "no encoder here; name a run directory or an encoder.safetensors file",
        (encoder,): "does not say what images it is from; name them: mocokit report RUN DATA",
        (encoder, str(tiny_run.data), "-o", str(existing)): "exists; name another, or --overwrite to replace it",
        (encoder, str(tiny_run.data), "-o", "page.pdf"): "is no .html; name a .html file",
    }.items():
        assert main(["report", *arguments]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.endswith(message), line
    assert existing.read_text() == "mine"
    monkeypatch.setattr(projection, "is_installed", lambda: False)
    assert main(["report", str(tiny_run.path)]) == 2
    assert "a report needs more packages: pip install 'mocokit[report]'" in capsys.readouterr().err


def test_pretraining_writes_it_unless_told_not_to(tmp_path, monkeypatch, capfd):
    data = awkward_data(tmp_path / "data")
    options = {**TINY, "epochs": 1}
    mocokit.pretrain(str(data), out=str(tmp_path / "with"), **(options | {"report": True}))
    assert "1 epoch, " in (tmp_path / "with" / "report.html").read_text(encoding="utf-8")
    mocokit.pretrain(str(data), out=str(tmp_path / "without"), **options)
    assert not (tmp_path / "without" / "report.html").exists()
    monkeypatch.setattr("mocokit.commands.pretrain.is_installed", lambda: False)
    mocokit.pretrain(str(data), out=str(tmp_path / "cannot"), **(options | {"report": True}))
    assert not (tmp_path / "cannot" / "report.html").exists()
    assert f"pip install 'mocokit[report]', then mocokit report {tmp_path / 'cannot'}\n" in capfd.readouterr().err


def test_a_run_tells_which_images_it_is_from(tiny_run):
    directory, run = RunDirectory(tiny_run.path), str(tiny_run.path)
    resolved = directory.read_config()
    given = module._with_data({"run": run, "clusters": 3}, directory, resolved)
    assert (given["data"], given["clusters"]) == (str(tiny_run.data), 3)
    assert module._with_data({"run": run, "data": "other"}, directory, resolved) == {"run": run, "data": "other"}
    streamed = resolved.derive("test", stream=True)
    assert module._with_data({"run": run}, directory, streamed)["limit"] == 10_000


def test_images_of_the_run_that_are_not_there_are_not_those_that_were_named(tiny_run):
    directory, run = RunDirectory(tiny_run.path), str(tiny_run.path)
    moved = directory.read_config().derive("test", data="im")
    told = f"{run} was made of im, which is not there; name the images: mocokit report {run} DATA"
    with pytest.raises(UserError, match=f"^{re.escape(told)}$"):
        module._with_data({"run": run}, directory, moved)
    assert module._with_data({"run": run, "data": "im"}, directory, moved)["data"] == "im"


def test_folders_and_classes_whose_names_are_not_utf8(tmp_path):
    data = coloured_data(tmp_path / "d\udce4ta")
    for split in ("train", "test"):
        (data / split / "class1").rename(data / split / "bee\udcfc")
    mocokit.pretrain(str(data), out=str(tmp_path / "run"), **TINY | {"epochs": 1})
    mocokit.report(str(tmp_path / "run"))
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "bee\\udcfc" in html
    assert "d\\udce4ta" in html
    assert len(data_of(html)["names"]) == 120


def test_skipped_files_are_those_of_the_images_that_are_named(tiny_run, tmp_path):
    shutil.copytree(tiny_run.path, tmp_path / "run")
    write_skipped(tmp_path / "run" / "skipped.csv", [Skipped("broken-of-the-run.png", "damaged")])
    other = write_images(tmp_path / "other", [f"{n}.png" for n in range(20)], 12, 12)
    (other / "broken-here.png").write_bytes(b"no picture")
    for data, (there, absent) in {
        str(tiny_run.data): ("broken-of-the-run", "broken-here"),
        str(other): ("broken-here", "broken-of-the-run"),
    }.items():
        mocokit.report(str(tmp_path / "run"), data, max_skipped=0.1, overwrite=True)
        html = (tmp_path / "run" / "report.html").read_text()
        assert there in html
        assert absent not in html


def lead_of(run: Path) -> str:
    html = (run / "report.html").read_text(encoding="utf-8")
    return html[html.index("<header>") : html.index("</header>")]


def test_figures_of_other_images_are_not_shown_as_if_they_were_of_these(tiny_run, tmp_path):
    run, other = tmp_path / "run", coloured_data(tmp_path / "other", classes=2, train=10, test=8)
    shutil.copytree(tiny_run.path, run)
    for path in (run / "results").iterdir():  # of other tests
        if path.name != "pretrain.json":
            path.unlink()
    mocokit.knn(str(run), str(other), baseline=False)
    mocokit.report(str(run))
    lead = lead_of(run)
    assert 'class="verdict"' in lead  # of the run's own images, as the title
    assert f"Not shown, for other images or labels: kNN (of {other})." in lead
    assert "on 48 test images, with" in lead  # the run's own kNN
    mocokit.report(str(run), str(other))
    lead = lead_of(run)
    assert 'class="verdict"' not in lead
    assert f"labels: the verdict (of {tiny_run.data})." in lead
    assert "on 16 test images, with" in lead
    assert "random init" not in lead


def test_results_of_another_structure_are_left_out(tiny_run, tmp_path, capfd):
    run = shutil.copytree(tiny_run.path, tmp_path / "run")
    for verb, text in {
        "pretrain": '{"knn": 5, "verdict": 3, "scorecard": [], "config": null}',
        "knn": '{"encoder": 5, "config": {}}',
        "scorecard": '{"config": {"data": 3, "stream": true}, "data_fingerprint": 0}',
    }.items():
        (run / "results" / f"{verb}.json").write_text(text)
    mocokit.report(str(run))
    told = capfd.readouterr().err
    for verb in ("pretrain", "knn", "scorecard"):
        assert re.search(rf"{verb}.json: damaged \(.*\), left out; remove it, measure again", told)


def test_a_selection_that_is_no_table_is_one_line(tmp_path):
    (tmp_path / "select.csv").write_bytes(b"\xff\xfe\0")
    images = SimpleNamespace(images=SimpleNamespace(names=["a"]))
    contents = SimpleNamespace(directory=RunDirectory(tmp_path), seen=images)
    with pytest.raises(UserError, match=r"select.csv: not a table \(.*\); move it"):
        module._Contents._selected(contents)


def test_a_streamed_run_is_of_these_images_where_they_are_in_the_same_place_and_have_the_same_labels(tmp_path):
    """Its figures are of a sample, whose fingerprint says nothing."""
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    of_run = {"stream": True, "data": str(tmp_path / "data")} | {
        n: FIELDS[n].default for n in deciding("labels", "held out")
    }
    for data, options, same in [
        (tmp_path / "data", {}, True),
        (tmp_path / "data" / "..", {}, False),
        (f"{tmp_path}/./link/", {}, True),
        (tmp_path / "data", {"labels": "table.csv"}, False),
        (tmp_path / "data", {"seed": 1}, False),
        (tmp_path / "data", {"images": 50}, True),
    ]:
        config = ReportConfig(run="r", data=str(data), **options)
        contents = SimpleNamespace(inputs=SimpleNamespace(store=None), config=config)
        assert module._Contents._is_of_these(contents, {"config": of_run}) == same


def test_images_with_other_labels_are_others_but_where_none_count(tmp_path):
    data = coloured_data(tmp_path / "d" / "data", train=10, test=5)
    flat, table = tmp_path / "flat", tmp_path / "labels.csv"
    flat.mkdir()
    for path in data.rglob("train/*/*.png"):
        shutil.copy(path, flat / f"{path.parent.name}-{path.name}")
    names = sorted(path.name for path in flat.iterdir())
    table.write_text("image,label\n" + "".join(f"{name},{name.partition('-')[0]}\n" for name in names))
    run, options = tmp_path / "run", {"labels": str(table), "test_share": 0.3}
    mocokit.pretrain(str(flat), out=str(run), **TINY | {"epochs": 1})
    mocokit.report(str(run))
    assert "two-view retrieval</th>" in lead_of(run)
    assert "Nothing was measured" not in lead_of(run)
    mocokit.knn(str(run), str(flat), **options)
    mocokit.report(str(run))
    assert "labels: kNN (of" in lead_of(run)
    mocokit.report(str(run), str(flat), **options)  # the verdict is by retrieval: true of the images with any labels
    assert 'class="verdict"' in lead_of(run)
    assert "on 9 test images held out of train (about 30 % of each class, one image at least), with" in lead_of(run)
    assert "Not shown" not in lead_of(run)


def test_a_run_that_was_measured_by_nothing_is_told_by_what_it_can_be(tmp_path):
    data = coloured_data(tmp_path / "data", train=6, test=2)
    mocokit.pretrain(str(data), out=str(tmp_path / "run"), **TINY | {"epochs": 1}, evaluate=False)
    mocokit.report(str(tmp_path / "run"))
    assert "Nothing was measured yet: mocokit scorecard does that" in lead_of(tmp_path / "run")
    mocokit.scorecard(str(tmp_path / "run"), str(data))
    mocokit.report(str(tmp_path / "run"))
    assert "two-view retrieval</th>" in lead_of(tmp_path / "run")


def test_a_fine_tuned_encoder_has_a_section_of_its_classifier(tiny_run, tmp_path):
    out = str(tmp_path / "tuned")
    mocokit.finetune(str(tiny_run.path), str(tiny_run.data), out=out, epochs=1, baseline=False)
    mocokit.report(out)
    html = (tmp_path / "tuned" / "report.html").read_text(encoding="utf-8")
    assert "The classifier" in html
    assert "confusion matrix" in html
    rows = json.loads(re.search(r'Least certain</h3><p.*?</p><div class="strip" data-rows="(\[.*?\])"', html)[1])
    names = data_of(html)["names"]
    assert len(rows) == 20
    assert all(names[row].startswith("test/") for row in rows)


def test_what_was_selected_is_shown(awkward_run):
    names = ["train/cat/a b.png", "gone.png", "train/cat/001.png"]
    path = awkward_run / "select.csv"
    path.write_text("image,order\n" + "".join(f'"{name}",1\n' for name in names), encoding="utf-8")
    mocokit.report(str(awkward_run))
    path.unlink()
    html = (awkward_run / "report.html").read_text(encoding="utf-8")
    rows = json.loads(re.search(r'id="label-first".*?data-rows="(.*?)"', html, re.DOTALL)[1])
    assert [data_of(html)["names"][row] for row in rows] == [names[0], names[2]]
