"""The command line of the evaluation."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .options import DTYPES, Options
from .policies import families
from .tasks import EVALUATION_TASKS


def parser() -> argparse.ArgumentParser:
    """The command line; its defaults are those of Options."""
    default = Options(Path())
    made = argparse.ArgumentParser(
        prog="python -m sift_attention.eval",
        description="Measure what sifting, and every alternative, costs a model in quality, at "
        "equal bytes. Stopped runs continue where they stopped when the same command is repeated.",
    )

    def add(name: str, kind: Callable[[str], Any], metavar: str, text: str) -> None:
        value = getattr(default, name[2:].replace("-", "_"))
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        made.add_argument(
            name, type=kind, metavar=metavar, default=value, help=text.replace("[=]", f"[{shown}]")
        )

    made.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for cells/, results.json and the report; needed unless something is listed",
    )
    add("--model", Path, "PATH", "folder of a Hugging Face causal language model [examples/model]")
    add("--tasks", _names, "A,B", "what to score, or 'list' to see what there is [all]")
    add(
        "--policies",
        _families,
        "A,B",
        "families of policies to simulate, by name or file, or 'list' [all]; exact always runs",
    )
    add("--lengths", _integers, "N,N", "tokens of a sequence, the first half is the prompt [=]")
    add("--seeds", int, "N", "sets of sequences; their spread is the error bar [=]")
    add("--seed", int, "N", "the first of those seeds [=]")
    add("--sequences", int, "N", "sequences per seed [=]")
    add("--budget", _numbers, "F,F", "shares of V rows read at which policies are compared [=]")
    add("--min-accuracy", float, "F", "share of answers the exact model must find, 0 to 1 [=]")
    add(
        "--stepwise",
        _families,
        "A,B",
        "families also run token by token through the operator, by name or file; 'default' is "
        "SiftConfig(), 'none' skips it [=]",
    )
    made.add_argument(
        "--free-running",
        action="store_true",
        help="also let the settings of --stepwise generate freely, and see where they diverge",
    )
    add(
        "--drift",
        int,
        "STEPS",
        "also follow the settings of --stepwise over so many steps of text; 0 skips it [=]",
    )
    add("--workers", int, "N", "processes [0: one per core; on a GPU 1]")
    add("--device", str, "NAME", "cpu, cuda or cuda:1 [=]")
    add("--dtype", str, "NAME", f"of the weights: {', '.join(DTYPES)} [=]")
    return made


def listing(arguments: argparse.Namespace) -> str | None:
    """What '--tasks list' and '--policies list' show; None where neither was asked for."""
    lines: list[str] = []
    if arguments.tasks == ("list",):
        for task_name, task in EVALUATION_TASKS.items():
            lines.append(f"{task_name:<20} {(task.__doc__ or '').strip().partition(chr(10))[0]}")
    if arguments.policies == ("list",):
        for name, members in families().items():
            oracle = "oracle; " if members[0].is_oracle else ""
            lines.append(f"{name:<32} {oracle}{len(members)} settings; {members[0].source}")
    return "\n".join(lines) or None


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _families(text: str) -> tuple[str, ...]:
    """Names of families hold commas, too, which a blank follows."""
    return tuple(re.split(r",(?! )", text))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))
