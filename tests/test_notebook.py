"""The notebooks in docs/notebooks run as they stand, are short, and show what really came out."""

import json
import os

import pytest
from conftest import ROOT

FILES = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
MADE = {  # what each leaves, beside its outputs
    "few-labels": ["runs/zero-shot", "runs/embeddings"],
    "quickstart": ["runs/embeddings", "runs/both/tfidf-seed0", "runs/both/embeddings-seed0"],
}


def code_of(file):
    return [cell for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def kinds_of(cells):
    """Name what each cell shows: the media types of its results and figures."""
    return [sorted(kind for output in cell["outputs"] for kind in output.get("data", ())) for cell in cells]


def test_every_notebook_is_known():
    assert [file.stem for file in FILES] == sorted(MADE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_notebook_runs(file, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}})
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # Threads that wait give way: other tests run beside this one, on as many threads.
    client.execute(env={**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"})
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [output for cell in ran for output in cell.outputs if output.output_type == "error"]
    assert kinds_of(ran) == kinds_of(code_of(file))  # of what is stored
    for method in MADE[file.stem]:
        assert (tmp_path / method / "run.json").exists()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_notebook_is_short_and_its_outputs_are_stored(file):
    cells = code_of(file)
    lines = [line for cell in cells for line in "".join(cell["source"]).splitlines() if line.strip()]
    assert len(lines) <= 18
    assert all(cell["outputs"] for cell in cells)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    stored = str([cell["outputs"] for cell in cells])
    for place in ("/tmp", "/home", "/root", "site-packages", "Traceback"):
        assert place not in stored
