"""The notebook runs as it stands, on bundled data, and what it shows is what it claims."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"
NOTEBOOK = nbformat.read(PATH, as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]


def test_stored_outputs_are_whole_and_small():
    """Readers on the web see every cell's result, in order, without errors and without this machine's paths."""
    nbformat.validate(NOTEBOOK)
    assert (NOTEBOOK.nbformat, NOTEBOOK.nbformat_minor) == (4, 5)
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    assert PATH.stat().st_size < 300_000
    texts = [json.dumps({k: v for k, v in o.get("data", o).items() if k != "image/png"}) for o in outputs]
    assert not re.search(r"site-packages|(?<![\w.])/(tmp|home|root|Users|usr)/", "".join(texts))


@pytest.mark.slow
def test_it_runs_and_learns(tmp_path: Path):
    """Twelve epochs lift kNN and the linear classifier well above the untrained network."""
    notebook = nbformat.v4.new_notebook(
        cells=[
            *CODE,
            nbformat.v4.new_code_cell("import json; print(json.dumps([knn, probe, found, result['epochs']]))"),
        ]
    )
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    knn, probe, found, epochs = json.loads(notebook.cells[-1].outputs[0].text)
    assert epochs == 12
    assert knn["encoder"] > knn["random_init"] + 0.1
    assert probe["encoder"]["top1"] > max(0.9, probe["random_init"]["top1"] + 0.03)
    labels = [(query["label"], near["label"]) for query in found["queries"] for near in query["neighbours"]]
    assert sum(own == other for own, other in labels) > len(labels) / 2
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
