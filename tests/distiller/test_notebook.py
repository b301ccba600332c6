"""The notebook runs from its first cell to its last, in a kernel of its own."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs/notebooks/own_loop.ipynb"


def test_the_notebook_of_a_loop_of_ones_own_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the kernel's folder is another
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):  # nothing is left in the home folder
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    files = {path.name for path in (tmp_path / "bundle").iterdir()}
    assert {"student.onnx", "student.int8.onnx", "encoder.onnx", "MODEL_CARD.md"} <= files
    assert (tmp_path / "runs/digits/checkpoint.safetensors").is_file()


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
