"""docs/tutorials/quickstart.ipynb runs as it stands, is short, and shows what really came out."""

import json
import os

from conftest import ROOT

FILE = ROOT / "docs/tutorials/quickstart.ipynb"
CODE = [cell for cell in json.loads(FILE.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def kinds_of(cells):
    """Name what each cell shows: the media types of its results and figures."""
    return [sorted(kind for output in cell["outputs"] for kind in output.get("data", ())) for cell in cells]


def test_the_notebook_runs(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(FILE, as_version=4)
    client = NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}})
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # Threads that wait give way: other tests run beside this one, on as many threads.
    client.execute(env={**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"})
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [output for cell in ran for output in cell.outputs if output.output_type == "error"]
    assert kinds_of(ran) == kinds_of(CODE)  # of what is stored
    assert "image/png" in kinds_of(ran)[-1]
    for method in ("runs/lora", "runs/both/tfidf-seed0", "runs/both/embeddings-seed0"):
        assert (tmp_path / method / "run.json").exists()


def test_the_notebook_is_short_and_its_outputs_are_stored():
    lines = [line for cell in CODE for line in "".join(cell["source"]).splitlines() if line.strip()]
    assert len(lines) <= 15
    assert all(cell["outputs"] for cell in CODE)
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    stored = str([cell["outputs"] for cell in CODE])
    for place in ("/tmp", "/home", "/root", "site-packages", "Traceback"):
        assert place not in stored
