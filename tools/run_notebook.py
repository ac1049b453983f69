"""Run notebooks/quickstart.ipynb and keep its outputs in the file: python tools/run_notebook.py cifar10-jpeg.tar.xz

The archive or folder is named to the notebook by its own name, so that no path of this machine is stored.
"""

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

PATH = Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells in ``folder``; what a cell prints in turn is one output."""
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=3600, coalesce_streams=True, record_timing=False, resources=resources).execute()


def tidy(notebook: NotebookNode) -> None:
    """Keep no more than readers need: no versions of the kernel, and pictures of 256 colours, a third of the size."""
    notebook.metadata["language_info"] = {"name": "python"}
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        if "image/png" in output.get("data", {}):
            picture = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))).convert("RGB")
            small = io.BytesIO()
            picture.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(small, "png", optimize=True)
            output["data"]["image/png"] = base64.b64encode(small.getvalue()).decode()


def main(data: str) -> None:
    """Run it on ``data`` in a new folder."""
    notebook = nbformat.read(PATH, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder, Path(data).name)
        here.symlink_to(Path(data).resolve())
        os.environ["MOCOKIT_CIFAR10"] = here.name
        execute(notebook, Path(folder))
    tidy(notebook)
    nbformat.write(notebook, PATH)


if __name__ == "__main__":
    main(sys.argv[1])
