"""A report on several lengths: what belongs to which is told apart everywhere."""

import pytest
from made_up_results import made_up_results

from sift_attention.eval.report import detail_plots, details, findings, tables, texts
from sift_attention.eval.report.results import Results


@pytest.fixture(scope="module")
def results():
    """The made-up results at 1,024 tokens, and at 512 with twice the quantiles predicted."""
    whole = made_up_results()
    shorter = [
        {**cell, "length": 512} for cell in whole["cells"] if cell["protocol"] == "simulated"
    ]
    quantiles = dict(whole["cells"][-1], length=512)
    quantiles["rows"] = [{**row, "predicted": 2 * row["predicted"]} for row in quantiles["rows"]]
    return Results({**whole, "cells": [*whole["cells"], *shorter, quantiles]})


def test_tasks_are_named_with_their_length(results):
    names = ["text at 512", "mqar at 512", "text at 1,024", "mqar at 1,024"]
    assert list(tables.condition_names(results).values()) == names
    assert findings.standing(results, [0.1]).head[1:] == names
    assert [row[0] for row in details.layers(results, "sift", 0.1).rows] == names
    sentences = " ".join(findings.findings(results, [0.1]))
    assert "On text at 512, sift reads" in sentences
    assert "recalls within 0.5 points of exact attention on mqar at 512 and mqar at 1,024" in (
        sentences
    )


def test_quantiles_of_lengths_are_not_mixed(results):
    rows = {row[0]: row[2] for row in details.quantile_errors(results).rows}
    assert rows == {
        "text at 1,024, layer 0": texts.times(1.0),
        "text at 512, layer 0": texts.times(2.0),
    }
    pytest.importorskip("matplotlib")
    titles = [axes.get_title() for axes in detail_plots.plot_quantiles(results).axes]
    assert [title.partition(":")[0] for title in titles[:2]] == ["text at 512", "text at 1,024"]


def test_lines_of_a_task_share_a_colour_and_those_of_a_length_their_dashes(results):
    pytest.importorskip("matplotlib")
    lines = detail_plots.plot_layers(results, "sift", 0.1).axes[0].get_lines()
    by_name = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in lines}
    assert by_name == {
        "text at 512": ("C0", "-"),
        "mqar at 512": ("C1", "-"),
        "text at 1,024": ("C0", "--"),
        "mqar at 1,024": ("C1", "--"),
    }
