"""Export a Hugging Face decoder that sifts, for run_exported: two packages of AOTInductor.

    python examples/cpp/exported/export_model.py examples/model build/exported/model
    build/exported/run_exported build/exported/model 100 <<< "256 100 101 102"

Takes a minute for a small model. `run_exported` is built by CMake from this folder, with
CMAKE_PREFIX_PATH set to what sift_attention.cmake_prefix_path and torch.utils.cmake_prefix_path
say; it reads and writes token ids.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM

import sift_attention as sift


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or name of the model")
    parser.add_argument("folder", type=Path, help="where prefill.pt2 and decode.pt2 go")
    parser.add_argument("--c", type=float, default=2.0, help="SiftConfig's c; 0 is exact (2)")
    parser.add_argument("--min-keys", type=int, default=256, help="SiftConfig's min_keys (256)")
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype="auto", local_files_only=True
    ).eval()
    try:
        config = sift.SiftConfig(c=arguments.c, min_keys=arguments.min_keys)
        exported = sift.hf.export(model, config)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    exported.package(arguments.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
