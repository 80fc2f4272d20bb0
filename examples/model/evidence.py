"""Measure a saved model: recall per task and bits per byte on held-out files, at several lengths.

    python examples/model/evidence.py [MODEL]

prints the result, writes MODEL/evidence.json and renews the table of MODEL/README.md, if any.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from sift_attention.eval.corpus import read_standard_library
from sift_attention.eval.scoring import score
from sift_attention.eval.tasks import TASKS

LENGTHS = (256, 512, 1024, 2048, 4096)
TOKENS_PER_CELL = 32_768
SEED = 1_000_000  # apart from the seeds of training


def measure(model: Any) -> list[dict[str, float]]:
    """One row per length: bits per byte of held-out text and accuracy of each other task."""
    corpus = read_standard_library("held_out")
    rows = []
    cells = [(length, name) for length in LENGTHS for name in TASKS]
    for length, name in tqdm(cells, desc="evidence", unit="cell"):
        rng = np.random.default_rng(SEED + length)
        samples = [TASKS[name](rng, length, corpus) for _ in range(TOKENS_PER_CELL // length)]
        result = score(model, samples)
        if name == "text":
            rows.append({"length": length, "bits_per_byte": round(result.bits_per_token, 3)})
        else:
            rows[-1][name] = round(result.accuracy, 4)
    return rows


def table(rows: list[dict[str, float]]) -> str:
    """The rows as a Markdown table."""
    recall = [name for name in TASKS if name != "text"]
    lines = [
        "| " + " | ".join(["tokens", "text, bits per byte", *recall]) + " |",
        "|---" * (2 + len(recall)) + "|",
    ]
    for row in rows:
        cells = [f"{row['length']}", f"{row['bits_per_byte']:.2f}"]
        cells += [f"{row[name]:.1%}" for name in recall]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def renew_card(card: Path, rows: list[dict[str, float]]) -> None:
    """Put the table between the two evidence comments of a model card."""
    before, begin, rest = card.read_text().partition("<!-- evidence -->\n")
    _, end, after = rest.partition("<!-- /evidence -->")
    card.write_text(f"{before}{begin}{table(rows)}\n{end}{after}")


def write(folder: Path, model: Any, training: list[dict[str, Any]]) -> None:
    """Measure, print, and keep the result with the facts of training beside the weights."""
    rows = measure(model)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    result = {"parameters": num_parameters, "training": training, "scores": rows}
    (folder / "evidence.json").write_text(json.dumps(result, indent=2) + "\n")
    if (card := folder / "README.md").exists():
        renew_card(card, rows)
    print(f"{num_parameters:,} parameters, training {training}\n{table(rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=Path(__file__).parent)
    folder = parser.parse_args().model
    previous = folder / "evidence.json"
    training = json.loads(previous.read_text())["training"] if previous.exists() else []
    write(folder, AutoModelForCausalLM.from_pretrained(folder, local_files_only=True), training)


if __name__ == "__main__":
    main()
