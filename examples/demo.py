"""Watch language models generate with exact and with sifted attention, side by side.

    python examples/demo.py            # about two minutes on two cores
    python examples/demo.py --quick    # under a minute

Part 1 generates with a small trained model and asks it recall questions; part 2 times the decoding
of long contexts. Writes demo_output/decoding.png.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch
from transformers.utils import logging

import demo_decoding
import demo_reading
from demo_screen import heading, say, table

OUTPUT = Path(__file__).resolve().parent.parent / "demo_output"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter texts, one context length")
    arguments = parser.parse_args()
    if not (demo_reading.MODEL / "model.safetensors").exists():
        print(f"demo: the trained model must be in {demo_reading.MODEL}, got no model.safetensors.")
        return 1
    # What Ctrl-C interrupts may not have decoded yet.
    warnings.filterwarnings("ignore", message="sift_attention: no decode step was sifted")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with torch.inference_mode():
            _show(arguments.quick)
    except KeyboardInterrupt:
        print("\nStopped. Nothing was left half-written.")
        return 130
    return 0


def _show(quick: bool) -> None:
    start_s = time.perf_counter()
    say(
        "sift-attention reads every key, and only the value rows whose probability exceeds a "
        "threshold that falls with the number of keys; the mean value row stands in for the rest."
    )
    reading = demo_reading.run(quick)
    results = demo_decoding.run(quick)

    heading("In short")
    rows = [
        [f"recall, {task}", f"{exact:.1%}", f"{sifted:.1%}"]
        for task, (exact, sifted) in reading.accuracy.items()
    ]
    rows.append(["V rows loaded, trained model", "100%", f"{reading.loaded_fraction:.1%}"])
    rows.append(
        ["K + V bytes read, trained model", "100%", f"{(1 + reading.loaded_fraction) / 2:.1%}"]
    )
    table(["", "exact", "sifted"], rows)
    longest = max(result.num_keys for result in results)
    at_longest = {r.mode: 1 / r.seconds_per_token for r in results if r.num_keys == longest}
    del at_longest[demo_decoding.EMPTY]
    sifted = at_longest[demo_decoding.SIFTED]
    table(
        [f"decoding at {longest:,} keys", "tokens/s", "sift, default, against it"],
        [[mode, f"{s:.2f}", f"{sifted / s:.2f}x"] for mode, s in at_longest.items()],
    )
    path = OUTPUT / "decoding.png"
    demo_decoding.plot(results, path)
    print(
        f"Plot: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}    "
        f"time: {time.perf_counter() - start_s:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
