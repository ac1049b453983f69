"""Sections on the run itself: its figures, what it was made of, its curves, its views, and how to use the encoder."""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mocokit.data.notes import count
from mocokit.deploy.montage import fitted
from mocokit.errors import refusing_damage
from mocokit.evaluation.baselines import row_name
from mocokit.evaluation.metrics import wilson_interval
from mocokit.files import printable
from mocokit.model.encoder import Encoder
from mocokit.reporting.page import Section, details, paragraph, strip, table
from mocokit.resolved import Resolved

VERBS = ("pretrain", "knn", "probe", "finetune", "scorecard")  # that measure, and what a page calls that
MEASURED = dict(zip(VERBS, ("the verdict", "kNN", "linear probe", "fine-tuning", "scorecard"), strict=True))
CURVES: dict[str, dict[str, str]] = {  # title: name of a line: column of metrics.csv
    "loss over chance level": {"loss over chance level": "loss_over_chance"},  # none while a queue fills
    "loss": {"loss": "loss"},  # of other trainings, which have no such column
    "kNN top-1": {"kNN top-1": "knn_top1"},
    "similarity of two views": {"of one image": "positive", "of two images": "negative"},
    "learning rate": {"learning rate": "lr"},
}
LISTED = 200  # skipped files, rows of a confusion matrix


def figures(results: Mapping[str, Mapping[str, Any]], channels: int) -> str:
    """What was measured by labels, or else without, of the encoder and of what it is compared with; ``results`` are
    those of verbs by name."""
    found: dict[str, dict[str, str]] = {}
    tested: dict[str, list[str]] = {}  # columns by the images that they are of
    pretrained = results.get("pretrain") or {}
    own = {"knn": {**(pretrained.get("knn") or {}), "test": pretrained.get("test")}}
    for verb, result in (own | dict(results)).items():
        column = _column(verb, result)
        for who, values in result.items():
            if isinstance(values, dict) and "top1" in values and "ci95" in values:
                scratch = verb == "finetune" and (who == "random_init" or result.get("protocol") == "from scratch")
                name = "from scratch" if scratch else row_name(who, channels)
                found.setdefault(name, {})[column] = _share(values["top1"], *values["ci95"])
        if any(column in row for row in found.values()):
            tested.setdefault(_tested(result.get("test")), []).append(column)
    if not found:
        return _label_free(results.get("scorecard") or pretrained, channels)
    columns = [column for group in tested.values() for column in group]
    rows = [[who, *(row.get(name, "") for name in columns)] for who, row in found.items()]
    on = "; ".join(f"{images} ({', '.join(of)})" if len(tested) > 1 else images for images, of in tested.items())
    note = f"Top-1 on {on}, with the interval in which it lies in 95 % of cases by the choice of these"
    note += ", and of the labels where they are few." if any("label" in column for column in columns) else "."
    return table(["features", *columns], rows, range(1, len(columns) + 1)) + paragraph(note, "faint")


def _column(verb: str, result: Mapping[str, Any]) -> str:
    """What a table calls the figures of a verb: by the labels that they took, and how."""
    few, share = ((result.get("config") or {}).get(name) for name in ("labels_per_class", "label_fraction"))
    labels = f", {count(few, 'label', 'labels')} per class" if few else ""
    labels += f", {100 * share:.3g} % of the labels" if share else ""
    return MEASURED[verb] + labels + (", by SGD" if result.get("protocol") == "sgd" else "")


def _tested(test: Mapping[str, Any] | None) -> str:
    """The images that figures are of, as their result says (`mocokit.runs.held_out.about_test`)."""
    images = count(test["images"], "test image", "test images") if test else "the test images"
    if not test or not (held_out := test["held_out"]):
        return images
    by = f"in whole groups by {held_out['by']}" if held_out["by"] else "one image at least"
    return f"{images} held out of {test['split']} (about {100 * held_out['share']:.3g} % of each class, {by})"


def _label_free(result: Mapping[str, Any], channels: int) -> str:
    intervals, rows = result.get("retrieval_ci95") or {}, []
    for who, scores in (result.get("scorecard") or {}).items():
        cells = _share(scores["retrieval"], *intervals[who]), f"{scores['rankme']:.1f}"
        rows.append((row_name(who, channels), *cells))
    note = "Retrieval: how often one augmented view of an image finds the other (95 % interval); RankMe: how many "
    note += "directions the features use. mocokit scorecard says more."
    return table(("features", "two-view retrieval", "RankMe"), rows, (1, 2)) + paragraph(note, "faint") if rows else ""


def left_out(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Which of the verbs' ``results`` are of other images than those of the page."""
    of = [f"{MEASURED[verb]} (of {result['config']['data']})" for verb, result in results.items()]
    return paragraph(f"Not shown, for other images or labels: {', '.join(of)}.", "faint") if of else ""


def training(pretrained: Mapping[str, Any]) -> str:
    """How long the training of a run's result was, and on what."""
    length = count(pretrained["epochs"], "epoch", "epochs") + ", " + count(pretrained["steps"], "step", "steps")
    length += f", {pretrained['wall_s']:,.0f} s in all, on {pretrained['config']['data']}"
    return printable(f"recipe {pretrained['recipe']}, {length}")


def check(verb: str, result: Mapping[str, Any], channels: int) -> None:
    """Raise whatever a result of another structure than that of its ``verb`` raises where it is shown."""
    _ = figures({verb: result}, channels), _label_free(result, channels), left_out({verb: result})
    if verb == "pretrain":
        made_of([("training", training(result))], (), None, result.get("versions"))
    if verb == "finetune":
        classifier(result, (), ())


def _share(share: float, low: float, high: float) -> str:
    return f"{100 * share:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def made_of(
    facts: Sequence[tuple[str, str]], skipped: Sequence[tuple[str, str]], resolved: Resolved | None, versions: Any
) -> Section:
    """``facts`` as they are, the skipped files with their reasons, and every value with where it is from."""
    html = table(["", ""], facts)
    if skipped:
        more = f", of which {LISTED} are listed; skipped.csv has all" if len(skipped) > LISTED else ""
        listed = table(["image", "why"], [(printable(name), why) for name, why in skipped[:LISTED]])
        html += details(f"{count(len(skipped), 'image', 'images')} could not be used{more}", listed)
    if resolved:
        config, reasons = vars(resolved.config), resolved.reasons
        rows = [(n, config[n], reasons.get(n, "given")) for n in config if config[n] is not None]
        html += details("every setting and where it is from", table(["setting", "value", "from"], rows))
    if versions:
        html += paragraph(", ".join(f"{name} {version}" for name, version in versions.items()), "faint")
    return Section("made-of", "What it was made of", html)


def curves(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, np.ndarray, dict[str, np.ndarray]]]:
    """Title, steps and lines of each chart for which the rows of a run's metrics have values."""

    def column(name: str) -> np.ndarray:
        return np.array([float(row.get(name) or "nan") for row in rows])

    found: list[tuple[str, np.ndarray, dict[str, np.ndarray]]] = []
    for title, lines in CURVES.items():
        values = {name: column(of) for name, of in lines.items()}
        if title == "loss" and found:
            continue
        if rows and not all(np.isnan(y).all() for y in values.values()):
            found.append((title, column("step"), values))
    return found


def views(images: Sequence[np.ndarray], first: np.ndarray, second: np.ndarray) -> Section:
    """Images [C, H, W] above their two views."""
    columns = "".join(
        f'<div style="width:76px">{"".join(f"<figure>{_inline(pixels)}</figure>" for pixels in column)}</div>'
        for column in zip(images, first, second, strict=True)
    )
    text = "Above the image, below the two views of it by which the encoder learns: it is to find them alike."
    return Section("views", "Two views", paragraph(text) + f'<div class="strip">{columns}</div>')


def _inline(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    fitted(pixels).save(buffer, "WEBP", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/webp;base64,{data}">'


def classifier(result: Mapping[str, Any], rows: Sequence[int], chances: Sequence[float]) -> Section:
    """Of a fine-tuned encoder: accuracy by class, confusion matrix, and test images of which it is least certain, with
    the chance of the class that it names."""
    encoder = result["encoder"]
    by_class = []
    for name, values in encoder["per_class"].items():
        if values["recall"] is not None:
            interval = wilson_interval(values["recall"], values["images"])
            by_class.append((name, values["images"], _share(values["recall"], *interval)))
    html = table(["class", "test images", "named right"], by_class, (1, 2))
    if (confusion := encoder.get("confusion")) and len(confusion) <= LISTED:
        names = list(encoder["per_class"])
        head = ["is, named", *names]
        body = [[name, *counts] for name, counts in zip(names, confusion, strict=True)]
        html += details("confusion matrix", table(head, body, range(1, len(head))))
    html += "<h3>Least certain</h3>"
    html += paragraph("Test images, each with the chance that the classifier gives the class that it names.", "faint")
    html += strip(rows, [f"{100 * chance:.0f} %" for chance in chances])
    return Section("classifier", "The classifier", html)


def use(encoder: Encoder, run: str) -> Section:
    """The lines that take the encoder elsewhere."""
    place = repr(run)
    quoted = run if run.isascii() and not set(run) & set(" '\"\\$`") else place
    parts = {
        "In Python": f"import mocokit\nencoder = mocokit.load({place})\n"
        f"features = encoder.embed(['image.jpg'])  # [1, {encoder.dim}]",
        "For timm": f"mocokit export {quoted} --format timm",
        "For ONNX": f"mocokit export {quoted} --format onnx",
        "A table of features": f"mocokit embed {quoted} DATA -o features.parquet",
    }
    html = "".join(f"<h3>{title}</h3><pre>{escape(printable(code))}</pre>" for title, code in parts.items())
    return Section("use", "Use the encoder", html)


def read_table(path: Path, *columns: str) -> list[Any]:
    """These columns of a CSV file in a run, a tuple of each row, if it is there; a `UserError` if it can't be read."""
    if not path.is_file():
        return []
    with refusing_damage(f"{path}: not a table", "move it"), path.open(encoding="utf-8", newline="") as file:
        return [tuple(row.get(column) or "" for column in columns) for row in csv.DictReader(file)]
