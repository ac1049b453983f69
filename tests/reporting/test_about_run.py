"""Sections on the run say what is in its files."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import fuzz

from mocokit.errors import UserError
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


def test_a_column_says_by_which_labels_and_a_row_what_was_trained_from_scratch():
    row = {"top1": 0.5, "ci95": [0.4, 0.6]}
    results = {
        "probe": {"encoder": row, "protocol": "sgd", "config": {"labels_per_class": 2, "label_fraction": None}},
        "finetune": {"encoder": row, "random_init": row | {"top1": 0.3}, "protocol": "finetune"},
    }
    html = about_run.figures(results, 3)
    assert "linear probe, 2 labels per class, by SGD" in html
    assert '<td>from scratch</td><td class="number"></td><td class="number">30.0 % (40.0 to 60.0)</td>' in html
    assert "random init" not in html
    results["probe"] |= {"protocol": "fast", "config": {"labels_per_class": None, "label_fraction": 0.1}}
    results["finetune"] |= {"protocol": "from scratch", "random_init": None}
    html = about_run.figures(results, 3)
    assert "linear probe, 10 % of the labels<" in html
    assert '<td>from scratch</td><td class="number"></td><td class="number">50.0 % (40.0 to 60.0)</td>' in html


def test_the_caption_says_which_images_were_tested():
    row = {"top1": 0.5, "ci95": [0.4, 0.6]}
    test = {"images": 1, "split": "test", "held_out": None}
    held = {"images": 48, "split": "train", "held_out": {"share": 0.2, "seed": 0, "by": None}}
    html = about_run.figures({"pretrain": {"knn": {"encoder": row}, "test": test}}, 3)
    assert "Top-1 on 1 test image, with" in html
    html = about_run.figures({"probe": {"encoder": row, "test": held}}, 3)
    assert "Top-1 on 48 test images held out of train (about 20 % of each class, one image at least), with" in html
    held["held_out"]["by"] = "folder"
    html = about_run.figures({"knn": {"encoder": row, "test": test}, "probe": {"encoder": row, "test": held}}, 3)
    assert (
        "on 1 test image (kNN); 48 test images held out of train (about 20 % of each class, in whole groups by" in html
    )


def test_without_labels_what_takes_none_is_shown():
    scores = {"encoder": {"retrieval": 0.5, "rankme": 26.1}, "random_init": {"retrieval": 0.05, "rankme": 28.7}}
    result = {"scorecard": scores, "retrieval_ci95": {"encoder": [0.4, 0.6], "random_init": [0.0, 0.1]}, "knn": None}
    html = about_run.figures({"pretrain": result}, 3)
    assert '<td>encoder</td><td class="number">50.0 % (40.0 to 60.0)</td><td class="number">26.1</td>' in html
    assert "mocokit scorecard" in html
    later = result | {"retrieval_ci95": {"encoder": [0.3, 0.7], "random_init": [0.0, 0.1]}}
    assert "50.0 % (30.0 to 70.0)" in about_run.figures({"pretrain": result, "scorecard": later}, 3)


ROW = {"top1": 0.5, "ci95": [0.4, 0.6]}
BASE = {"config": {"data": "d", "labels_per_class": 2}, "data_fingerprint": "a", "versions": {"torch": "2"}}
TEST = {"images": 3, "split": "train", "held_out": {"share": 0.2, "by": "folder"}}
SCORES = {"scorecard": {"encoder": {"retrieval": 0.5, "rankme": 2.0}}, "retrieval_ci95": {"encoder": [0.4, 0.6]}}
LENGTH = {"epochs": 2, "steps": 9, "wall_s": 1.5, "recipe": "auto"}
CLASSES = {"per_class": {"a": {"recall": 0.5, "images": 2}}, "confusion": [[2]]}
WHOLE = {
    "pretrain": BASE | LENGTH | SCORES | {"verdict": "v", "knn": {"encoder": ROW}, "test": TEST},
    "knn": BASE | {"encoder": ROW, "test": TEST},
    "finetune": BASE | {"encoder": ROW | CLASSES, "random_init": None, "protocol": "finetune", "test": TEST},
    "scorecard": BASE | SCORES,
}


def shown(results: dict) -> None:
    """All that a page shows of these results."""
    about_run.figures(results, 3)
    about_run.left_out(results)
    if "pretrain" in results:
        about_run.training(results["pretrain"])
        about_run.made_of([], [], None, results["pretrain"].get("versions"))
    if "finetune" in results:
        about_run.classifier(results["finetune"], [1], [0.5])


@given(st.data())
def test_a_page_of_results_that_were_checked_one_by_one_has_no_error(data):
    draw = data.draw
    kept = {}
    for verb, result in WHOLE.items():
        if isinstance(other := fuzz.changed(draw, result), dict):
            with suppress(Exception):
                about_run.check(verb, other, 3)
                kept[verb] = other
    shown(kept)


def test_whole_results_pass():
    for verb, result in WHOLE.items():
        about_run.check(verb, result, 3)
    shown(WHOLE)


@pytest.mark.parametrize("damaged", [b"\xff\xfe\0", b"image,reason\n" + b"9" * 200_000 + b",x\n"])
def test_a_damaged_table_is_one_line(tmp_path, damaged):
    (tmp_path / "skipped.csv").write_bytes(damaged)
    with pytest.raises(UserError, match=r"skipped.csv: not a table \(.*\); move it"):
        about_run.read_table(tmp_path / "skipped.csv", "image", "reason")


def test_what_is_of_other_images_is_named():
    html = about_run.left_out({verb: {"config": {"data": "<other>"}} for verb in ("pretrain", "probe")})
    assert "Not shown, for other images or labels: the verdict (of &lt;other&gt;), linear probe (of &lt;other" in html
    assert about_run.left_out({}) == ""


def test_curves_of_what_was_measured():
    rows = [
        {"step": "0", "loss": "", "knn_top1": "0.5", "lr": ""},
        {"step": "25", "loss": "1.5", "loss_over_chance": "", "knn_top1": "", "lr": "0.2"},  # the queue fills
        {"step": "50", "loss": "2.5", "loss_over_chance": "0.8", "knn_top1": "", "lr": "0.1"},
    ]
    found = {title: (x, lines) for title, x, lines in about_run.curves(rows)}
    assert list(found) == ["loss over chance level", "kNN top-1", "learning rate"]
    x, lines = found["loss over chance level"]
    assert x.tolist() == [0, 25, 50]
    assert np.array_equal(lines["loss over chance level"], [np.nan, np.nan, 0.8], equal_nan=True)
    tuned = about_run.curves([{"step": "0", "loss": "2.5"}])
    assert [(title, list(lines)) for title, _, lines in tuned] == [("loss", ["loss"])]
    assert about_run.curves([]) == []


def test_what_could_not_be_used_is_listed(tmp_path):
    path = tmp_path / "skipped.csv"
    assert about_run.read_table(path, "image", "reason") == []
    path.write_text('image,reason\n"a,b.png",damaged\n', encoding="utf-8")
    assert about_run.read_table(path, "image", "reason") == [("a,b.png", "damaged")]
    path.write_text("reason,image\ndamaged\n,,,\n", encoding="utf-8")
    assert about_run.read_table(path, "image", "reason", "x") == [("", "damaged", ""), ("", "", "")]
    section = about_run.made_of([("images", "3")], [("<a>.png", "damaged")] * 201, None, {"torch": "2"})
    one = about_run.made_of([], [("<a>.png", "damaged")], None, None)
    assert "1 image could not be used<" in one.html
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
    assert "the chance that the classifier gives the class that it names" in html
