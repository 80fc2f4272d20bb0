"""Execute examples/quality.ipynb and keep its outputs: `make notebook`."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

PATH = Path(__file__).resolve().parents[1] / "examples" / "quality.ipynb"
TIMEOUT_S = 600  # for one cell, on a busy machine
# tqdm warns of widgets that the environment lacks and the notebook does not need.
WARNINGS = "ignore:IProgress not found"


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of this machine; a failing cell raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=TIMEOUT_S, resources=folder, record_timing=False)
    client.execute(env={**os.environ, "PYTHONWARNINGS": WARNINGS})
    notebook.metadata["language_info"] = {"name": "python"}  # without the version that ran it
    return notebook


if __name__ == "__main__":
    nbformat.write(executed(PATH), PATH)
