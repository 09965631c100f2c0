"""The notebook: it is made from its source, runs from top to bottom, and shows what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "classroom"
NOTEBOOK = FOLDER / "notebook.ipynb"
SOURCE = FOLDER / "notebook_source.py"
REMAKE = "run in classroom/: jupytext --update --to ipynb -o notebook.ipynb notebook_source.py"
BUSY_S = 120  # for a cell, or for its last output, on a busy machine: only failing tests wait

pytestmark = pytest.mark.slow


def cells_of(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def shown_by(notebook: Any) -> str:
    """Return all text that the cells have printed or returned."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "\n".join(
        output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs
    )


def test_the_notebook_is_what_its_source_makes() -> None:
    import jupytext

    assert cells_of(jupytext.read(NOTEBOOK)) == cells_of(jupytext.read(SOURCE)), REMAKE


def test_the_notebook_carries_no_output() -> None:
    import jupytext

    assert shown_by(jupytext.read(NOTEBOOK)) == ""


@pytest.mark.filterwarnings("default")
def test_the_notebook_runs_from_top_to_bottom_and_shows_what_it_says() -> None:
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.read(NOTEBOOK)
    place = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=BUSY_S, iopub_timeout=BUSY_S, resources=place).execute()
    shown = shown_by(notebook)
    for line in (
        "'sum': 41.5",
        "'sum': 100.0",
        "body    [100.0,20.5,21.0,22.5]",
        "padding 0a 0a 0a 0a 0a 0a 0a 0a 0a 0a",
        "refused: BadTag",
        "accepted: ClientData(readings=[900.0, 20.5, 21.0, 22.5])",
        "the two answers: 60 50",
        "[100.0,20.5,21.0 in 852 questions",
    ):
        assert line in shown
    kinds = {
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        for kind in output.get("data", {})
    }
    assert "image/png" in kinds
