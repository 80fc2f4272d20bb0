"""tools/compat.py, installing nothing: cells, what cannot be had, counts, README's table."""

import subprocess

import pytest

import compat
import compat_cells
import compat_table
from compat_cells import CELLS, Cell, MissingError

REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_good"/>
<testcase classname="tests.test_a" name="test_bad[1]"><failure message="no"/></testcase>
<testcase classname="tests.test_a" name="test_worse"><error message="none"/></testcase>
<testcase classname="tests.test_b" name="test_other"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""
ROW = {"cell": "3.11-2.11.0-4.57.6", "python": "3.11.7", "torch": "2.11.0+cpu", "commit": "0123"}
ROW |= {"transformers": "4.57.6", "passed": 700, "failed": 0, "skipped": 3, "quick": False}


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


def test_cells_are_all_versions_and_the_ends_together():
    assert len(set(CELLS)) == len(CELLS)
    with_usual = {cell.torch for cell in CELLS if cell.transformers == "5.17.0"}
    assert {"2.11.0", "2.13.0", "2.14.1"} <= with_usual
    with_usual = {cell.transformers for cell in CELLS if cell.torch == "2.13.0"}
    assert with_usual == {"4.57.6", "5.13.1", "5.17.0", "5.18.0", "5.23.0"}
    assert Cell("3.11", "2.11.0", "4.57.6") in CELLS
    assert {cell.python for cell in CELLS} == {"3.10", "3.11", "3.12", "3.13", "3.14"}


def test_a_report_is_counted(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    assert compat.count(report) == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "failures": ["tests.test_a::test_bad[1]", "tests.test_a::test_worse"],
    }


def test_the_chosen_tests_are_there():
    usual, other = Cell("3.11", "2.13.0", "5.17.0"), Cell("3.11", "2.13.0", "5.18.0")
    every = compat.files(usual, quick=False)
    assert all(path.exists() for path in every)
    assert {path.parent.name for path in every} == {"tests", "hf"}
    assert {path.parent.name for path in compat.files(other, quick=False)} == {"hf"}
    few = compat.files(usual, quick=True)
    assert set(few) < set(every)
    assert len(few) == len(compat.QUICK)


def test_a_python_that_cannot_be_had(log):
    row = compat.test(Cell("2.99", "2.13.0", "5.17.0"), log, quick=False)
    assert row["missing"] == "Python 2.99 is not installed here"
    assert "failed" not in row
    assert compat_table.outcome(row) == "not tested: Python 2.99 is not installed here"


def test_a_reason_names_no_folder():
    stderr = "Traceback\nImportError: /home/me/torch/lib/libtorch.so: undefined symbol: x\n"
    assert compat.reason(stderr) == "ImportError: libtorch.so: undefined symbol: x"


def test_a_torch_that_cannot_be_had(log, tmp_path, monkeypatch):
    def fail(*words, **_):
        if "install" in words:
            raise subprocess.CalledProcessError(1, words)
        (tmp_path / "python3.11" / "lib" / "python3.11" / "site-packages").mkdir(parents=True)

    monkeypatch.setattr(compat_cells, "run", fail)
    monkeypatch.setattr(compat_cells, "WORK", tmp_path)
    with pytest.raises(MissingError, match=r"^torch 9.9 could not be installed for Python 3.11$"):
        compat_cells.torch_layers(Cell("3.11", "9.9", "5.17.0"), tmp_path / "python", log)


def test_a_program_that_fails_is_a_failure(log):
    with pytest.raises(subprocess.CalledProcessError):
        compat_cells.run("false", log=log)
    assert log.read_text() == "$ false\n"


def test_what_torch_requires(tmp_path):
    metadata = tmp_path / "torch-2.11.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    lines = ("sympy>=1.13", 'nvidia-nccl-cu13==2.28; platform_system == "Linux"', "triton==3.6")
    lines += ("cuda-toolkit[cudart]==13.0.2", 'optree>=0.13; extra == "optree"')
    text = "".join(f"Requires-Dist: {line}\n" for line in lines)
    metadata.write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: 2.11.0\n{text}")
    found = compat_cells.requirements(tmp_path)
    assert [name for name in found if not compat_cells.is_cuda(name)] == ["sympy>=1.13"]
    assert len(found) == 4


def test_the_command_line_takes_known_cells(capsys):
    assert compat.parse([]) == (list(CELLS), False)
    assert compat.parse(["--quick", "3.11-2.11.0-4.57.6"]) == ([CELLS[9]], True)
    assert str(CELLS[9]) == "3.11-2.11.0-4.57.6"
    with pytest.raises(SystemExit):
        compat.parse(["3.11-2.9.0-4.57.6"])
    assert "CELL must be one of --list, got 3.11-2.9.0-4.57.6" in capsys.readouterr().err


def test_the_table_has_a_line_for_each_cell():
    failed = {**ROW, "python": "3.12.1", "failed": 2, "quick": True, "commit": "4567"}
    missing = {"python": "3.14", "torch": "2.14.1", "transformers": "5.23.0", "commit": "4567"}
    missing["missing"] = "Python 3.14 is not installed here"
    machine = {"cpu": "made up", "date": "2000-01-01"}
    text = compat_table.table({"machine": machine, "rows": [ROW, failed, missing]})
    assert "| 3.11.7 | 2.11.0+cpu | 4.57.6 | 700 passed, 3 skipped |" in text
    assert "| 3.12.1 | 2.11.0+cpu | 4.57.6 | 2 failed, 700 passed, 3 skipped (quick) |" in text
    assert "| 3.14 | 2.14.1 | 5.23.0 | not tested: Python 3.14 is not installed here |" in text
    assert "made up, 2000-01-01, commit 0123, 4567" in text
