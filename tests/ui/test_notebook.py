"""The notebook runs from top to bottom on the built-in base."""

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

NOTEBOOK = Path(__file__).parents[2] / "notebooks/playground.ipynb"


def test_the_notebook_trains_generates_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    shorter = {
        "TRAIN = []": 'TRAIN = ["--steps", "19", "--destyle-images", "0"]',
        "SAMPLER_STEPS = 20": "SAMPLER_STEPS = 2",
    }
    for cell in notebook.cells:
        for line, short in shorter.items():
            cell.source = cell.source.replace(line, short)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert len(list((tmp_path / "unziplora/export").glob("*.safetensors"))) == 2
    shown = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(shown) >= 3  # the image, the sheet of the training, and the cross


def test_the_notebook_holds_no_outputs_and_names_existing_options() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
