"""Each notebook of the documentation runs, and shows what is committed."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]


def shown(notebook: nbformat.NotebookNode) -> list[str]:
    """What each cell of code prints."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(each.text for each in cell.outputs if each.get("name") == "stdout") for cell in cells]


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_shows_what_is_committed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = nbformat.read(path, as_version=4)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)  # of an earlier test: fresh values depend on it
    where = {"metadata": {"path": str(ROOT)}}
    found = NotebookClient(deepcopy(committed), timeout=120, kernel_name="python3", resources=where).execute()
    assert len(shown(found)) > 5 and any(shown(found))
    assert shown(found) == shown(committed)
