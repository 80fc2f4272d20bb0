"""Write the generated parts of docs/quality.md, and README's, from an evaluation's results.

python benchmarks/quality_table.py --from out   # trim out/results.json and draw its overview first
python benchmarks/quality_table.py              # rewrite both pages between the markers
python benchmarks/quality_table.py --check      # fail if that would change them
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reports import update_page
from sift_attention.eval.report import details, findings, tables
from sift_attention.eval.report.page import Table, Text, markdown
from sift_attention.eval.report.plots import Plots
from sift_attention.eval.report.results import Results
from sift_attention.eval.report.texts import counted, percent

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "quality.json"
PAGE = ROOT / "docs" / "quality.md"
README = ROOT / "README.md"
BUDGETS = (0.05, 0.10, 0.15, 0.25)
BUDGET = 0.10  # of tables that show one

# What the tables of the page need of a cell; of the default's family also what follows.
_FIELDS = ("task", "length", "seed", "family", "policy", "protocol", "kl", "accuracy", "exact")
_FIELDS += ("v_fraction", "kv_fraction", "rows", "first_divergence")
_OF_DEFAULT = ("agreement", "dropped_mass", "sifted_share", "layers", "by_depth")
_DIGITS = 5


def trimmed(data: dict[str, Any]) -> dict[str, Any]:
    """A results.json without what the page does not show."""
    hero = Results(data).hero
    cells = []
    for cell in data["cells"]:
        fields = _FIELDS + (_OF_DEFAULT if cell["family"] == hero else ())
        fields += ("by_step",) if cell["protocol"] == "drift" else ()
        cells.append({key: _rounded(cell[key]) for key in fields if key in cell})
    return {**{key: value for key, value in data.items() if key != "cells"}, "cells": cells}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return value


def take(folder: Path) -> None:
    """Commit an evaluation to memory: its trimmed results, and the plots of all tasks."""
    data = trimmed(json.loads((folder / "results.json").read_text()))
    head = json.dumps({key: value for key, value in data.items() if key != "cells"}, indent=1)
    cells = ",\n".join(json.dumps(cell, separators=(",", ":")) for cell in data["cells"])
    RESULTS.write_text(f'{head.removesuffix("}").rstrip()},\n "cells": [\n{cells}\n]}}\n')
    with tempfile.TemporaryDirectory() as scratch:
        plots = Plots(Results(data), Path(scratch))
        for image in (*plots.overview("v_fraction"), *plots.overview("kv_fraction")):
            path = Path(scratch) / image.path
            shutil.copy(path, RESULTS.with_name(f"quality_{path.name}"))


def parts(results: Results) -> dict[str, str]:
    """The generated parts of the page, as Markdown, by name."""
    hero = results.hero
    if hero is None:
        raise ValueError("quality_table: results must hold the default's family, got none")
    v, kv = "v_fraction", "kv_fraction"
    made: dict[str, Callable[[], Sequence[Table | None]]] = {
        "standing": lambda: [findings.standing(results, BUDGETS)],
        "ranking V": lambda: [findings.ranking(results, v, BUDGETS)],
        "ranking K + V": lambda: [findings.ranking(results, kv, BUDGETS)],
        "scoreboard V": lambda: [tables.scoreboard(results, v, BUDGET)],
        "scoreboard K + V": lambda: [tables.scoreboard(results, kv, BUDGET)],
        "recall": lambda: [tables.recall(results), details.depths(results, hero, 0.15)],
        "choice": lambda: [findings.choice(results, hero), details.settings(results, hero)],
        "layers": lambda: [details.layers(results, hero, BUDGET)],
        "quantiles": lambda: [details.quantile_errors(results)],
        "checks": lambda: [
            details.stepwise(results),
            details.drift(results),
            details.free_running(results),
        ],
        "refused": lambda: [details.refused(results)],
        "policies": lambda: [details.sources(results)],
    }
    sentences = [f"- {sentence}" for sentence in findings.findings(results, BUDGETS)]
    return {
        "circumstances": _circumstances(results),
        "findings": "\n".join(sentences),
        **{name: _shown(make()) for name, make in made.items()},
    }


def summary(results: Results) -> str:
    """What README shows: what a threshold costs, and where the default stands."""
    choice = _shown([findings.choice(results, str(results.hero))])
    return f"{choice}\n\n{findings.findings(results, BUDGETS)[0]}"


def _shown(found: Sequence[Table | None]) -> str:
    blocks = [table for table in found if table is not None]
    return markdown(blocks or [Text("Not measured in these results.")]).rstrip()


def _circumstances(results: Results) -> str:
    facts, options = results.environment, results.environment["options"]
    exact = [
        f"{condition.task} {percent(accuracy, 1)}"
        for condition in tables.asked(results)
        if (accuracy := tables.exact_accuracy(results, condition))
    ]
    seeds = counted(options["seeds"], "seed")
    sequences = counted(options["sequences"], "sequence")
    lengths = ", ".join(f"{length:,}" for length in options["lengths"])
    return (
        f"Model: `{facts['model']}`, {facts['parameters'] / 1e6:.1f} M parameters, "
        f"{facts['layers']} layers, {facts['query_heads']} query and {facts['kv_heads']} key/value "
        f"heads, D = {facts['head_dim']}. Sequences of {lengths} tokens, {seeds} "
        f"of {sequences} each. Right answers of exact attention: "
        f"{', '.join(exact)}; below {percent(options['min_accuracy'])} a task is refused. "
        f"{facts['cpu']} with {facts['cores']} cores, torch {facts['torch']}, "
        f"transformers {facts['transformers']}, commit {facts['commit']}, {facts['date']}; the "
        f"evaluation took {facts['wall_s'] / 60:.0f} minutes."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="folder", type=Path, help="an evaluation to take over")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if outdated")
    arguments = parser.parse_args()
    if arguments.folder is not None and not arguments.check:
        take(arguments.folder)

    results = Results.load(RESULTS)
    command = "python benchmarks/quality_table.py"
    statuses = [
        update_page(PAGE, name, text, command, check=arguments.check)
        for name, text in parts(results).items()
    ]
    summarised = update_page(README, "quality", summary(results), command, check=arguments.check)
    return max(*statuses, summarised)


if __name__ == "__main__":
    sys.exit(main())
