"""A packaged model decodes in Python and in a C++ program as the model itself does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import sift_attention as sift
from cmake_project import CMAKE, PACKAGE, ROOT, TORCH, configure
from sift_attention.eval.tokens import BOS

NEW = 40
CONFIG = sift.SiftConfig(min_keys=0)


@torch.no_grad()
def run_in_python(folder, prompt: list[int]) -> tuple[list[int], int]:
    prefill, decode = (
        torch._inductor.aoti_load_package(folder / f"{name}.pt2") for name in ("prefill", "decode")
    )
    sizes = decode.get_metadata()
    layout = sift.hf.Layout(
        **{name: int(size) for name, size in sizes.items() if size.isdecimal()},
        dtype=getattr(torch, sizes["dtype"]),
        device=torch.device(sizes["device"]),
    )
    state, no_padding = layout.empty_state(len(prompt) + NEW), torch.zeros(1).long()
    logits, _ = prefill(torch.tensor([prompt]), torch.tensor([0]), no_padding, state)
    written, rows_loaded = [logits.argmax().item()], 0
    for position in range(len(prompt), len(prompt) + NEW - 1):
        token = torch.tensor([written[-1:]])
        logits, loaded = decode(token, torch.tensor([position]), no_padding, state)
        written.append(logits.argmax().item())
        rows_loaded += int(loaded.sum())
    full = torch.tensor([len(prompt) + NEW])
    with pytest.raises(RuntimeError, match="index out of bounds"):
        decode(token, full, no_padding, state)
    return written, rows_loaded


@pytest.fixture
def program():
    build = ROOT / "build" / "exported"
    source = ROOT / "examples" / "cpp" / "exported"
    ok, output = configure(source, build, f"-DCMAKE_PREFIX_PATH={PACKAGE};{TORCH}")
    assert ok, output
    subprocess.run([CMAKE, "--build", build], check=True)
    return build / "run_exported"


# Takes 40 s of one core: two compilations ahead of time and, the first time, one of C++. All in
# one test, since workers share no fixtures.
@pytest.mark.timeout(900)
def test_package_decodes_as_the_model(program, tmp_path):
    folder = ROOT / "examples" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = [BOS, *(ROOT / "tests" / "oracle.py").read_bytes()[:300]]
    tokens = torch.tensor([prompt])
    with sift.hf.enabled(model, CONFIG) as handle:
        text = model.generate(tokens, max_new_tokens=NEW, do_sample=False)
        total = handle.stats().total
    wanted = text[0, len(prompt) :].tolist()

    script = ROOT / "examples" / "cpp" / "exported" / "export_model.py"
    command = [sys.executable, script, folder, tmp_path, "--min-keys", "0"]
    quickly = {**os.environ, "AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL": "O0"}
    subprocess.run(command, env=quickly, check=True)
    assert run_in_python(tmp_path, prompt) == (wanted, total.rows_loaded)

    wrong = subprocess.run([*command, "--c", "-1"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr.endswith("SiftConfig: c must be finite and not negative, got -1.0\n")

    def run_program(*arguments, ids=prompt):
        text = " ".join(map(str, ids))
        command = [program, *map(str, arguments)]
        return subprocess.run(command, input=text, capture_output=True, text=True)

    done = run_program(tmp_path, NEW)
    assert done.returncode == 0, done.stderr
    assert [int(line) for line in done.stdout.split()] == wanted
    assert f"{total.rows_loaded} of {total.keys} value rows loaded" in done.stderr

    for arguments, ids, sentence in (
        ((tmp_path,), [1], "usage: run_exported FOLDER NUM_TOKENS < token ids"),
        ((tmp_path, "few"), [1], "NUM_TOKENS must be a positive number, got few"),
        ((tmp_path, 3), [1, "x"], "the standard input must hold token ids, got 1 before"),
        ((tmp_path, 3), [1, 260], "tokens must be in [0, 260), got 1 to 260"),
        ((tmp_path / "no", 3), [1], "FOLDER must hold what export packaged, got no "),
    ):
        done = run_program(*arguments, ids=ids)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith(f"run_exported: {sentence}")
        assert done.stderr.count("\n") == 1
