"""The report of made-up results shows the numbers that went in, and says what it lacks."""

import json
import math
import statistics
from html.parser import HTMLParser

import pytest
from made_up_results import cell, made_up_results, write

from sift_attention.eval.report import details, findings, plots, tables, texts, write_report
from sift_attention.eval.report.curves import (
    AtBudget,
    Point,
    at_budget,
    best_and_tied,
    interpolate,
)
from sift_attention.eval.report.page import Heading, Table, Text, markdown, page
from sift_attention.eval.report.results import Condition, Results

TEXT, MQAR = Condition("text", 1024), Condition("mqar", 1024)


@pytest.fixture(scope="module")
def results():
    return Results(made_up_results())


def row(table, name):
    """A table's row by its first column, without it."""
    (found,) = [list(cells[1:]) for cells in table.rows if cells[0] == name]
    return found


def test_interpolation_is_linear_in_the_logarithms():
    points = [Point(0.05, 4e-3), Point(0.2, 1e-3), Point(0.4, 1e-4)]
    assert interpolate(points, 0.1) == pytest.approx(2e-3)  # half way: the geometric mean
    assert interpolate(points, 0.2 * math.sqrt(2)) == pytest.approx(math.sqrt(1e-7))
    assert interpolate(points, 0.05) == pytest.approx(4e-3)


def test_nothing_is_extrapolated():
    points = [Point(0.05, 4e-3), Point(0.2, 1e-3)]
    assert interpolate(points, 0.049) is None
    assert interpolate(points, 0.9) == 1e-3  # fewer bytes are within the budget too


def test_settings_that_read_the_same_count_with_the_better_one(results):
    cells = [cell("text", "sift", 0.1, 0), cell("text", "sift", 0.1, 0, kl=7e-5, policy="B()")]
    few = Results({**results.data, "cells": cells})
    assert at_budget(few, TEXT, "sift", "v_fraction", 0.1).mean == pytest.approx(7e-5)


def test_at_a_budget_mean_and_spread_are_those_of_the_seeds(results):
    at = at_budget(results, TEXT, "sift", "v_fraction", 0.05)
    assert at.by_seed == pytest.approx({0: 2e-4, 1: 4e-4, 2: 6e-4})  # 1e-5 / 0.05 times 1, 2, 3
    assert at.mean == pytest.approx(4e-4)
    assert at.spread == pytest.approx(2e-4)
    assert at.share == pytest.approx(0.05)
    assert not at.stops_short


def test_a_family_that_needs_more_on_one_seed_is_out_of_reach(results):
    cells = [c for c in results.cells() if (c["seed"], c["v_fraction"]) != (1, 0.025)]
    at = at_budget(Results({**results.data, "cells": cells}), TEXT, "sift", "v_fraction", 0.05)
    assert not at.by_seed
    assert texts.reached(at) == "needs 10.0%"  # of the three seeds' 2.5, 10 and 2.5


def test_a_family_whose_settings_all_read_less_says_so(results):
    at = at_budget(results, TEXT, "window", "kv_fraction", 0.55)
    assert (at.share, at.stops_short) == (pytest.approx(0.4), True)
    assert at.by_seed == pytest.approx({0: 1e-4, 1: 2e-4, 2: 3e-4})
    assert texts.reached(at) == "0.20 ± 0.10 at 40%"


def at(*values):
    return AtBudget(dict(enumerate(values)), 0.1)


def test_ties_are_judged_seed_by_seed():
    best, tied = best_and_tied(
        {
            "best": at(1.0, 10.0, 100.0),
            "level": at(1.5, 9.0, 110.0),  # logs of ratios .41, -.11, .10: mean .13, deviation .26
            "behind": at(1.2, 12.0, 120.0),  # always the same 1.2 times, however far seeds spread
            "out of reach": AtBudget({}, 0.3),
        }
    )
    assert best == "best"
    assert tied == ["level"]


def test_with_one_seed_only_equals_are_tied():
    assert best_and_tied({"a": at(1.0), "b": at(1.0), "c": at(1.001)}) == ("a", ["b"])
    assert best_and_tied({"a": AtBudget({}, 0.3)}) == (None, [])


def test_kinds_follow_source_oracles_and_bytes(results):
    kinds = {name: family.kind for name, family in results.families.items()}
    assert kinds == {
        "fitted": "ours",
        "sift": "ours",
        "level": "reads every key",
        "paper": "reads every key",
        "sketch": "estimates scores",
        "window": "evicts",
        "oracle": "oracle",
    }
    assert results.hero == "sift"  # the first of its file, though not the first of ours
    assert [family.name for family in tables.ordered(results)][:2] == ["sift", "fitted"]


def test_the_table_at_equal_bytes_marks_best_and_tied_without_oracles(results):
    table = tables.equal_bytes(results, TEXT, "v_fraction", [0.05, 0.5])
    assert table.head == ["text, 1,024 tokens", "5% of V", "50% of V"]
    assert row(table, "sift (default)") == ["*0.40 ± 0.20*", "*0.050 ± 0.025 at 40%*"]
    # 1e-5 (1.2, 1.6, 3) / 0.05: 0.24, 0.32 and 0.6 thousandths
    assert row(table, "level")[0] == "**0.39 ± 0.19**"
    assert row(table, "fitted")[0] == "0.80 ± 0.40"
    assert row(table, "oracle")[0] == "0.040 ± 0.020"
    assert "0.8 M parameters cannot show large-model quality" in table.caption


def test_equal_k_and_v_bytes_let_estimates_read_more_values(results):
    # Reading every key and a tenth of V takes .55; 'sketch' reaches .4625 with v = .4.
    table = tables.equal_bytes(results, TEXT, "kv_fraction", [0.1])
    assert table.head[1] == "55% of K + V"
    assert row(table, "sift (default)") == ["0.20 ± 0.10"]
    assert row(table, "sketch") == ["**0.15 ± 0.075 at 46%**"]


def test_the_scoreboard_has_a_column_for_every_task(results):
    table = tables.scoreboard(results, "v_fraction", 0.1)
    assert table.head == ["at 10% of V", "text", "mqar"]
    assert row(table, "sift (default)") == ["*0.20 ± 0.10*"] * 2


def test_recall_is_compared_with_exact_within_the_limit(results):
    table = tables.recall(results)
    assert table.head == ["at most 15% of V", "mqar"]
    assert row(table, "exact accuracy") == ["98.0%"]
    # accuracy falls by 10 times the KL: 0.1, 0.2 and 0.3 points at a tenth of V
    assert row(table, "sift (default)") == ["-0.2 ± 0.1 at 10%"]
    few = [c for c in results.cells() if c["v_fraction"] > 0.2]
    table = tables.recall(Results({**results.data, "cells": few}))
    assert row(table, "sift (default)") == ["needs 40%"]


def test_findings_count_and_measure(results):
    found = findings.findings(results, [0.1])
    assert found[0] == (
        "At 10% of the V bytes, against the policies of others that need no oracle, sift is best "
        "or tied with the best in 2 of 2 comparisons (tasks and budgets); some policy of ours in 2."
    )
    assert "sift is best or tied with the best in 0 of 2 comparisons" in found[1]
    assert "reads 10.0% of V at a KL of 0.20 thousandths of a nat per token, within" in found[2]
    assert found[3].endswith("recalls within 0.5 points of exact attention on mqar.")
    assert found[4] == (
        "At the V bytes that its settings take, paper has 5.00 to 5.00 times the KL of sift, "
        "median 5.00 (18 comparisons)."
    )


def test_a_missed_target_is_named(results):
    cells = [dict(c, kl=0.01) for c in results.cells()]
    for c in cells:
        c["accuracy"] = None if c["accuracy"] is None else 0.90
    found = findings.findings(Results({**results.data, "cells": cells}), [0.1])
    assert any("above the 2.0 aimed at" in sentence for sentence in found)
    assert any(sentence.endswith("not on mqar (-8.0 ± 0.0 points).") for sentence in found)


def test_standing_names_who_is_ahead(results):
    table = findings.standing(results, [0.1])
    assert row(table, "10% of V") == ["*tied*, level"] * 2
    assert row(table, "55% of K + V") == ["1.33x, sketch"] * 2  # 2e-4 over 3e-5 * 2 / 0.4


def test_the_ranking_is_the_geometric_mean_over_tasks_and_seeds(results):
    table = findings.ranking(results, "v_fraction", [0.1])
    assert [cells[0] for cells in table.rows] == [
        *("oracle", "level", "sift (default)", "fitted", "sketch", "window", "paper"),
    ]
    ratio = statistics.geometric_mean([1.2, 0.8, 1.0])
    assert row(table, "level") == [f"{ratio:.2f} (2)"]
    assert row(table, "sift (default)") == ["1.00 (2)"]
    assert row(table, "paper") == ["5.00"]


def test_choice_shows_the_worst_of_every_setting(results):
    table = findings.choice(results, "sift")
    # mqar and text have equal KL; the name breaks the tie
    assert row(table, "share=0.1") == ["10.0% to 10.0%", "0.20 (text)", "-0.2 (mqar)"]


def test_layers_depths_and_steps(results):
    assert row(details.layers(results, "sift", 0.1), "text") == ["10.0% (20.0%)", "5.0% (40.0%)"]
    assert details.layers(results, "sift", 0.1).head == ["sift", "layer 1", "layer 3"]
    # accuracies .979, .978, .977 of 50 answers each
    table = details.depths(results, "sift", 0.15)
    assert (table.head, table.rows) == (["sift", "10% deep"], [["mqar, 1,024", "97.8% (98.0%)"]])
    table = details.drift(results)
    assert table.head == ["", "from step 0", "from step 5,000"]
    assert table.rows[0][1:] == ["0.10 at 10.0%", "0.30 at 8.0%"]


def test_accuracy_by_depth_weighs_answers():
    places = [{"by_depth": [{"depth": 0.5, "accuracy": a, "num_answers": n}]} for a, n in
              ((1.0, 30), (0.5, 10), (None, 0))]  # fmt: skip
    assert details.by_depth(places) == {0.5: 0.875}


def test_simulation_operator_and_free_running(results):
    (found,) = details.stepwise(results).rows
    assert found[1:] == ["0.10", "0.11", "10.00%", "10.01%", "0.010"]
    (found,) = details.free_running(results).rows
    assert found[1] == "321"


def test_quantile_errors():
    # Predicted 2, 1 and 1/2 times the true one: logs .69, 0, -.69; of the true: -1.39, 0, 1.39.
    table = details.quantile_errors(Results(made_up_results()))
    assert table.rows == [["text, layer 0", "3", "1.00", "100%", "0.75"]]


def test_the_report_and_its_files(tmp_path):
    pytest.importorskip("matplotlib")
    path = write_report(write(tmp_path), budgets=(0.1, 0.05))
    written = (tmp_path / "report.md").read_text()
    for heading in ("Findings", "Recall", "What to choose", "Layers", "Depth of the answer"):
        assert f"\n## {heading}\n" in written
    for heading in ("Drift", "Predicted and true quantiles", "Simulated and stepwise", "Refused"):
        assert f"\n## {heading}\n" in written
    assert "| tracking, 1,024 tokens | exact accuracy 71.0 % |" in written
    assert "**Unfinished**: 2 cells" in written
    pictures = sorted((tmp_path / "plots").iterdir())
    assert len(pictures) == 6 + 2 * 2 + 1
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)

    html = path.read_text()
    assert html.count("data:image/png;base64,") == len(pictures)
    assert "a &lt;made up&gt; model" in html
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    assert not reader.outside


class Reader(HTMLParser):
    """Which tags are open, and what lies outside the file."""

    def __init__(self):
        super().__init__()
        self.open, self.outside = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("img", "meta"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href") and not value.startswith("data:"):
                self.outside.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_without_matplotlib_tables_are_written_and_the_plots_are_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    html = write_report(write(tmp_path)).read_text()
    assert "matplotlib must be installed" in html
    assert "pip install 'sift-attention[eval]'" in html
    assert "<table>" in html
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize("cells", [0, 1, 5])
def test_an_interrupted_evaluation_has_a_report(tmp_path, cells):
    results = made_up_results()
    results["cells"] = results["cells"][:cells]
    written = write_report(write(tmp_path, results)).with_suffix(".md").read_text()
    assert "2 cells left to measure" in written
    assert ("No policy has been measured yet" in written) == (cells < 5)


def test_without_the_default_its_parts_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    results = made_up_results()
    results["cells"] = [c for c in results["cells"] if c["family"] in ("sketch", "window")]
    written = write_report(write(tmp_path, results)).with_suffix(".md").read_text()
    assert "## Findings" not in written
    assert "| sketch |" in written


def test_null_counts_as_not_measured(results, tmp_path):
    broken = json.loads(json.dumps(results.data))
    for c in broken["cells"]:
        if c["family"] == "sketch":
            c["kl"] = None
    table = tables.equal_bytes(Results(broken), TEXT, "v_fraction", [0.1])
    assert row(table, "sketch") == [""]


@pytest.mark.parametrize(
    ("nats", "text"),
    [
        (1.234, "1,234"),
        (0.0234, "23"),
        (0.00234, "2.3"),
        (2.34e-4, "0.23"),
        (2.34e-5, "0.023"),
        (2.3e-6, "0.002"),
        (2e-7, "<0.001"),
        (0.0, "<0.001"),
        (math.nan, ""),
    ],
)
def test_thousandths(nats, text):
    assert texts.milli(nats) == text


def test_a_single_thing_is_counted_in_the_singular():
    assert texts.counted(1, "seed") == "1 seed"
    assert texts.counted(0, "cell") == "0 cells"
    assert texts.counted(1200, "cell") == "1,200 cells"


def test_labels_are_what_differs():
    assert texts.setting_labels(["P(a=1, b='x', c=(1, 2))", "P(a=2, b='x', c=(1, 2))"]) == {
        "P(a=1, b='x', c=(1, 2))": "a=1",
        "P(a=2, b='x', c=(1, 2))": "a=2",
    }
    assert texts.setting_labels(["Exact()"]) == {"Exact()": "Exact()"}


def test_markdown_and_html_of_a_page(tmp_path):
    blocks = [Heading("T", 1), Text("a **b** `c<d`"), Table(["x", "y"], [["1", "*2*"]], "seen")]
    assert markdown(blocks) == (
        "# T\n\na **b** `c<d`\n\n| x | y |\n| --- | ---: |\n| 1 | *2* |\n\nseen\n"
    )
    html = page(blocks, tmp_path)
    assert "<p>a <b>b</b> <code>c&lt;d</code></p>" in html
    assert "<tr><td>1</td><td><i>2</i></td></tr>" in html
