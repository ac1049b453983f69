"""The plot of a study: a panel for each imbalance, a line for each method."""

import pytest
from PIL import Image

from mocokit.studies.plots import write_plots
from mocokit.studies.results import by_setting, compare, read_rows
from tests.studies.made import made_trials

matplotlib = pytest.importorskip("matplotlib")


def test_panels_and_lines(tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    write_plots(tmp_path, compare(by_setting(read_rows(made_trials(tmp_path / "trials")))))
    svg = (tmp_path / "study.svg").read_text()
    for text in ("moco-finetuned", "from-scratch", "balanced", "r = 10", "training images", "top-1 on test images, %"):
        assert f">{text}<" in svg
    assert ">moco<" not in svg  # its features were not measured on the subset's own labels
    with Image.open(tmp_path / "study.png") as png:
        assert png.width > png.height


def test_nothing_to_plot(tmp_path):
    write_plots(tmp_path, [])
    assert not list(tmp_path.iterdir())
