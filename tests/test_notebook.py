"""The notebook runs as it stands, and what it shows is what it claims."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from tools.run_notebook import PATH, execute

import mocokit

NOTEBOOK = nbformat.read(PATH, as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
PICTURES = ("data", "views", "curves", "tensorboard", "confusion", "search", "map", "labels")
WHOLE = r"([\d.]+) ?%.*?([\d.]+)% to ([\d.]+)%"  # an accuracy with its interval


def printed(cells: list[NotebookNode], name: str, stream: str = "stdout") -> str:
    """What the cell ``name`` printed."""
    outputs = next(cell.outputs for cell in cells if cell.get("id") == name)
    return "".join(output.text for output in outputs if output.get("name") == stream)


def check_outputs(cells: list[NotebookNode]) -> None:
    """A picture in each cell that draws one; nothing on stderr, warnings least of all, but what pretraining tells."""
    drawn = [c.id for c in cells for output in c.outputs if "image/png" in output.get("data", {})]
    assert drawn == [*PICTURES]
    assert [c.id for c in cells for output in c.outputs if output.get("name") == "stderr"] == ["pretrain"]
    assert "Warning" not in printed(cells, "pretrain", "stderr")


def accuracies(text: str, rows: str) -> dict[str, tuple[float, float, float]]:
    """Top-1 in %, with its interval, of each row whose beginning matches ``rows``."""
    found = re.findall(rf"^ *({rows}) +(?:top-1 +)?{WHOLE}", text, re.MULTILINE)
    return {name: (float(top1), float(low), float(high)) for name, top1, low, high in found}


def test_stored_outputs_are_whole_and_small():
    """Readers on the web see every cell's result, in order, without errors and without this machine's paths."""
    nbformat.validate(NOTEBOOK)
    assert (NOTEBOOK.nbformat, NOTEBOOK.nbformat_minor) == (4, 5)
    assert {"kernelspec", "language_info"} == {*NOTEBOOK.metadata}
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    check_outputs(CODE)
    assert PATH.stat().st_size < 500_000
    texts = [json.dumps({k: v for k, v in o.get("data", o).items() if k != "image/png"}) for o in outputs]
    assert not re.search(r"site-packages|(?<![\w.])/(tmp|home|root|Users|usr|work)/", "".join(texts))


def test_what_is_stored_is_of_photographs_and_beats_what_needs_no_training():
    assert printed(CODE, "data").startswith("CIFAR-10 (JPEG): 4,000 training images of 32 x 32 pixels, 10 classes")
    knn = accuracies(printed(CODE, "pretrain", "stderr"), "encoder|random init|raw pixels|colour histogram")
    fast = accuracies(printed(CODE, "probe"), "fast +(?:MoCo|untrained network|raw pixels|colour histogram)")
    for encoder, *others in (knn.values(), fast.values()):
        assert len(others) == 3
        assert all(encoder[1] > high for _, _, high in others), "intervals overlap"
    sgd = accuracies(printed(CODE, "probe"), "sgd +(?:MoCo|untrained network)")
    assert sgd["sgd   MoCo"][1] > sgd["sgd   untrained network"][2]


def test_it_uses_public_names_only():
    tree = ast.parse(
        "\n".join(cell.source.replace("%", "# %", 1) if cell.source[0] == "%" else cell.source for cell in CODE)
    )
    modules = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    modules += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert [name for name in modules if name.startswith("mocokit")] == ["mocokit"]
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "mocokit"}
    assert {"MoCoV2", "pretrain", "probe"} <= used <= {*mocokit.__all__}


def run(folder: Path, settings: str) -> tuple[list[NotebookNode], dict[str, dict]]:
    """The code cells after a run in ``folder`` with other ``settings``, and what came out."""
    at = next(i for i, cell in enumerate(CODE) if "parameters" in cell.metadata.get("tags", ()))
    results = "print(json.dumps([differences, result['knn'], fast, sgd, by_labels, found]))"
    cells = [*CODE[: at + 1], new_code_cell(settings), *CODE[at + 1 :], new_code_cell(f"import json; {results}")]
    notebook = new_notebook(cells=[*map(NotebookNode, cells)])
    execute(notebook, folder)
    *cells, last = notebook.cells
    check_outputs(cells)
    names = ("differences", "knn", "fast", "sgd", "by_labels", "found")
    return cells, dict(zip(names, json.loads(last.outputs[0].text), strict=True))


@pytest.mark.slow
def test_without_photographs_it_runs_on_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A few epochs lift kNN and the linear classifier above the untrained network, in float32 and in bfloat16."""
    monkeypatch.setenv("MOCOKIT_CIFAR10", "missing.tar")
    cells, came = run(tmp_path, "EPOCHS, LABELS = 8, (10,)")
    assert "no such data: missing.tar" in printed(cells, "data")
    assert max(came["differences"].values()) < 1e-5
    assert came["knn"]["encoder"]["top1"] > came["knn"]["random_init"]["top1"] + 0.05
    assert came["fast"]["encoder"]["top1"] > came["fast"]["random_init"]["top1"] + 0.03
    assert came["by_labels"]["10"]["encoder"]["top1"] > came["by_labels"]["10"]["random_init"]["top1"]
    labels = [(query["label"], near["label"]) for query in came["found"]["queries"] for near in query["neighbours"]]
    assert sum(own == other for own, other in labels) > len(labels) / 2
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


@pytest.mark.slow
def test_it_runs_on_photographs(tmp_path: Path, cifar10: Path, monkeypatch: pytest.MonkeyPatch):
    """A few of them and few steps: enough for a linear classifier to beat that of the untrained network."""
    for split, step in (("train", 1), ("test", 10)):
        images = mocokit.open_images(str(cifar10), split=split, limit=2_000, image_size=32)
        for i in range(0, len(images), step):
            path = tmp_path / "few" / split / images.label_names[images.labels[i]] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i]).save(path)
    monkeypatch.setenv("MOCOKIT_CIFAR10", "few")
    cells, came = run(tmp_path, "LIMIT, EPOCHS, LABELS = None, 6, (10,)")
    assert printed(cells, "data").startswith("few: 2,000 training images of 32 x 32 pixels, 10 classes")
    assert max(came["differences"].values()) < 1e-5
    assert came["fast"]["encoder"]["top1"] > came["fast"]["random_init"]["top1"]
