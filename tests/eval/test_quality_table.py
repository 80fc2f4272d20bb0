"""docs/quality.md: its generated parts are those that trimmed results give."""

import json
import re
import sys

import pytest
from made_up_results import made_up_results, write

import quality_table
from sift_attention.eval.report.results import Results


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A copy of docs/quality.md, and of README, beside results of their own."""
    copy = tmp_path / "quality.md"
    for name, path in (("PAGE", copy), ("README", tmp_path / "README.md")):
        path.write_text(getattr(quality_table, name).read_text())
        monkeypatch.setattr(quality_table, name, path)
    monkeypatch.setattr(quality_table, "RESULTS", tmp_path / "quality.json")
    return copy


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["quality_table.py", *map(str, arguments)])
    return quality_table.main()


def test_trimming_changes_no_table():
    whole = made_up_results()
    trimmed = quality_table.trimmed(whole)
    assert quality_table.parts(Results(trimmed)) == quality_table.parts(Results(whole))
    assert len(json.dumps(trimmed)) < 0.7 * len(json.dumps(whole))


def test_an_evaluation_is_taken_over(page, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    assert run(monkeypatch, "--from", write(tmp_path)) == 0
    for axis in ("v", "kv"):
        picture = tmp_path / f"quality_overview_{axis}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
    written = page.read_text()
    assert "| sift (default) | *0.20 ± 0.10* | *0.20 ± 0.10* |" in written
    assert "`a <made up> model`, 0.8 M parameters" in written
    assert "Right answers of exact attention: mqar 98.0%" in written
    assert "against the policies of others" in (tmp_path / "README.md").read_text()
    assert run(monkeypatch, "--check") == 0

    page.write_text(written.replace("*0.20 ± 0.10*", "*0.10 ± 0.10*"))
    assert run(monkeypatch, "--check") == 1
    assert "run `python benchmarks/quality_table.py`" in capsys.readouterr().out
    assert run(monkeypatch) == 0
    assert page.read_text() == written


def test_results_without_the_default_are_refused():
    with pytest.raises(ValueError, match="must hold the default's family, got none"):
        quality_table.parts(Results({"cells": []}))


def test_no_number_is_typed_by_hand():
    """Outside the generated parts and the commands there is none in digits."""
    text = quality_table.PAGE.read_text()
    prose = re.sub(r"<!-- ([^:]+): begin -->.*?<!-- \1: end -->", "", text, flags=re.S)
    prose = re.sub(r"```.*?```|`[^`]*`|\(.*?\)", "", prose, flags=re.S)
    assert re.findall(r"\d", prose) == []
