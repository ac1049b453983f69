"""Sections on the run say what is in its files."""

import numpy as np

from mocokit.reporting import about_run
from tests.encoders import random_encoder


def test_figures_stand_beside_each_other():
    row = {"top1": 0.5, "ci95": [0.4, 0.6]}
    results = {
        "pretrain": {"knn": {"encoder": row, "random_init": row | {"top1": 0.25}}},
        "probe": {"encoder": row | {"top1": 0.75}, "colour_histogram": row, "images": {"train": 3}, "wall_s": 1.0},
    }
    html = about_run.figures(results, 3)
    assert html.index("kNN") < html.index("linear probe")
    assert "fine-tuning" not in html
    assert html.count("<tr>") == 4
    assert "75.0 % (40.0 to 60.0)" in html
    assert '<td>random init</td><td class="number">25.0 % (40.0 to 60.0)</td><td class="number"></td>' in html
    assert about_run.figures({}, 3) == ""
    assert about_run.figures({"pretrain": {"knn": None}}, 3) == ""


def test_a_later_knn_takes_the_place_of_the_runs_own():
    row = {"top1": 0.5, "ci95": [0.4, 0.6]}
    html = about_run.figures({"pretrain": {"knn": {"encoder": row}}, "knn": {"encoder": row | {"top1": 0.6}}}, 3)
    assert "60.0 %" in html
    assert "50.0 %" not in html


def test_curves_of_what_was_measured():
    rows = [
        {"step": "0", "loss": "", "knn_top1": "0.5", "lr": ""},
        {"step": "50", "loss": "2.5", "knn_top1": "", "lr": "0.1"},
    ]
    found = {title: (x, lines) for title, x, lines in about_run.curves(rows)}
    assert list(found) == ["loss", "kNN top-1", "learning rate"]
    x, lines = found["loss"]
    assert x.tolist() == [0, 50]
    assert np.array_equal(lines["loss"], [np.nan, 2.5], equal_nan=True)
    assert about_run.curves([]) == []


def test_what_could_not_be_used_is_listed(tmp_path):
    path = tmp_path / "skipped.csv"
    assert about_run.read_skipped(path) == []
    path.write_text('image,reason\n"a,b.png",damaged\n', encoding="utf-8")
    assert about_run.read_skipped(path) == [("a,b.png", "damaged")]
    section = about_run.made_of([("images", "3")], [("<a>.png", "damaged")] * 201, None, {"torch": "2"})
    assert "201 images could not be used, of which 200 are listed" in section.html
    assert section.html.count("&lt;a&gt;.png") == 200
    assert "torch 2" in section.html


def test_settings_say_where_they_are_from(tiny_run):
    from mocokit.rundir import RunDirectory

    resolved = RunDirectory(tiny_run.path).read_config()
    html = about_run.made_of([], [], resolved, None).html
    assert "<td>queue_size</td><td>16</td><td>given</td>" in html
    reason = resolved.reasons["temperature"]
    assert f"<td>temperature</td><td>{resolved.config.temperature}</td><td>{reason}</td>" in html


def test_the_lines_to_use_it_run(tiny_run):
    html = about_run.use(random_encoder(3), str(tiny_run.path)).html
    assert "mocokit export" in html
    code = html.split("<pre>")[1].split("</pre>")[0].replace("&#x27;", "'")
    names = {}
    exec(code.replace("['image.jpg']", "[]"), names)
    assert names["features"].shape[0] == 0


def test_the_classifier_by_class():
    per_class = {
        "a": {"precision": 1.0, "recall": 0.5, "images": 10},
        "b": {"precision": None, "recall": None, "images": 0},
    }
    result = {"encoder": {"per_class": per_class, "confusion": [[5, 5], [0, 0]]}}
    html = about_run.classifier(result, [4, 2], [0.51, 0.6]).html
    assert "50.0 % (23.7 to 76.3)" in html
    assert '<td>b</td><td class="number">0</td>' in html  # of the confusion matrix alone
    assert html.count("<td>b</td>") == 1
    assert 'data-rows="[4, 2]"' in html
    assert "51 %" in html
