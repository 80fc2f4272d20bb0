"""The quality notebook runs, and is committed with what it shows."""

import re

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
import quality_notebook  # noqa: E402


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """What the cell printed or drew, without the numbers; prints arrive in any number of pieces."""
    streams = {output.name for output in cell.outputs if output.output_type == "stream"}
    return streams, [sorted(output.data) for output in cell.outputs if "data" in output]


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def numbers(line):
    return [float(number) for number in re.findall(r"\d[\d.]*(?:e-\d+)?", line)]


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(quality_notebook.PATH, as_version=4)


def test_it_runs_and_shows_what_the_committed_one_shows(committed):
    fresh = quality_notebook.executed(quality_notebook.PATH)
    assert [kinds(cell) for cell in code_cells(fresh)] == [
        kinds(cell) for cell in code_cells(committed)
    ]
    simulated, operator, difference = map(numbers, printed(code_cells(fresh)[-1]).splitlines())
    assert simulated == pytest.approx(operator, rel=0.01, abs=0.02)
    assert len(simulated) == 4  # KL in nats, then percentages
    assert difference[0] < 1e-3


def test_the_committed_outputs_are_complete_and_small(committed):
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(output.get("name") != "stderr" for output in outputs)
    images = [output.data["image/png"] for output in outputs if "data" in output]
    assert len(images) == 5
    assert quality_notebook.PATH.stat().st_size < 700_000
