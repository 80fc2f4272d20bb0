"""The C++ example: the tokens that Python generates, and a sentence for all that it cannot use."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import sift_attention as sift
from cmake_project import ROOT
from sift_attention.eval.tokens import BOS, VOCAB_SIZE, decode

MODEL = ROOT / "examples" / "model"
NUM_TOKENS = 100


@pytest.fixture(scope="module")
def program() -> Path:
    """sift_generate, built where `make example-cpp` builds it."""
    folder = ROOT / "build" / "example-cpp"
    subprocess.run([sys.executable, ROOT / "examples" / "cpp" / "build.py", folder], check=True)
    return folder / "sift_generate"


@pytest.fixture(scope="module")
def prompt(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompt") / "prompt.py"
    path.write_bytes(Path(sift.state.__file__).read_bytes()[:900])
    return path


@pytest.fixture(params=["float32", "bfloat16"])
def model_folder(request, tmp_path) -> Path:
    if request.param == "float32":
        return MODEL
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    return tmp_path


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([program, *arguments], capture_output=True, timeout=120)


@pytest.mark.parametrize("c", [0.0, 0.5, 2.0])
def test_same_tokens_as_python(program, prompt, model_folder, c):
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="auto").eval()
    tokens = torch.tensor([[BOS, *prompt.read_bytes()]])
    with torch.inference_mode(), sift.hf.enabled(model, sift.SiftConfig(c=c)) as handle:
        text = model.generate(tokens, max_new_tokens=NUM_TOKENS, do_sample=False)
        total = handle.stats().total
    wanted = text[0, tokens.shape[1] :].numpy()

    threshold = ["--exact"] if c == 0.0 else ["--c", str(c)]
    fixed = ["--tokens", str(NUM_TOKENS), "--model", model_folder]
    done = run(program, prompt, *threshold, *fixed, "--threads", str(torch.get_num_threads()))
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(errors="replace") == decode(wanted)
    loaded, keys = re.findall(r"(\d+) of (\d+) value rows", done.stderr.decode())[0]
    assert (int(loaded), int(keys)) == (total.rows_loaded, total.keys)
    assert f"{total.dropped / total.head_steps:.2%} of the probability" in done.stderr.decode()


def test_help(program):
    done = run(program, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(b"usage: sift_generate FILE")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "FILE must be given, or --random-llama-1b instead, got none"),
        (["FILE", "--random-llama-1b"], "FILE must be given, or --random-llama-1b instead, got b"),
        (["FILE", "other"], "FILE must be one file, got other"),
        (["nowhere"], "FILE must be readable and not empty, got nowhere"),
        (["FILE", "--model", "/nowhere"], "/nowhere/config.json: the file must be there and rea"),
        (["FILE", "--fast"], "an option must be among those of --help, got --fast"),
        (["FILE", "--tokens", "0"], "--tokens must be a positive number, got 0"),
        (["FILE", "--tokens", "8191"], "--tokens must be at most 8190 for this model, got 8191"),
        (["FILE", "--threads"], "--threads must be followed by a value, got none"),
        (["FILE", "--c", "-1"], "--c must be a number from 0 up, got -1"),
        (["FILE", "--c", "1", "--exact"], "--c must be without --exact, got both"),
        (["FILE", "--keys", "9"], "--keys must be with --random-llama-1b, got it alone"),
    ],
)
def test_bad_arguments(program, prompt, arguments, sentence):
    done = run(program, *(prompt if a == "FILE" else a for a in arguments))
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.decode().startswith(f"sift_generate: {sentence}")
    assert done.stderr.count(b"\n") == 1


def test_long_prompt_is_cut(program, tmp_path):
    shutil.copy(MODEL / "model.safetensors", tmp_path)
    config = json.loads((MODEL / "config.json").read_text()) | {"max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = tmp_path / "long.txt"
    path.write_text("a" * 100)
    done = run(program, path, "--tokens", "20", "--model", tmp_path)
    assert "prompt: the last 43 of 100 bytes, the model knows 64" in done.stderr.decode()
    assert "prompt: 44 tokens" in done.stderr.decode()


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: str, shape: list[object], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file must begin with the length of its header, got 0 bytes"),
        (struct.pack("<Q", 100), "the header must fit the file, got a length of 100 bytes"),
        (safetensors(b"[]"), "the header must be an object"),
        (safetensors(b'{"a": }'), "must be JSON, got something else than a value at byte 6"),
        (safetensors(b'{"a":1,"a":1}'), 'must be JSON, got something else than a new name after "'),
        (safetensors(b"{} x"), "must be JSON, got something else than the end at byte 3"),
        (safetensors(b"[" * 100), "must be JSON, got something else than a value less deep at"),
        (safetensors(b'{"a": 01}'), "must be JSON, got something else than a number without l"),
        (
            safetensors(b'{"\\u00e9\\ud83d\\ude00\\t": {}}'),
            "é😀\t: dtype must be a string, got none or",
        ),
        (
            safetensors(b'{"\\ud83d": {}}'),
            "must be JSON, got something else than a surrogate pair at",
        ),
        (
            safetensors(b'{"\n": {}}'),
            "must be JSON, got something else than the end of a string at",
        ),
        (safetensors({"a": tensor("I8", [1], 0, 1)}), "a: dtype must be F32, F16 or BF16, got I8"),
        (safetensors({"a": tensor("F32", [-1], 0, 4)}), "a: shape must be a list of whole num"),
        (safetensors({"a": tensor("F32", [2**32, 2**32], 0, 4)}), "a: shape must be that of its"),
        (safetensors({"a": tensor("F32", [2], 0, 4)}), "a: data_offsets must hold 8 bytes, got [0"),
        (safetensors({"a": tensor("F32", [1], 4, 8)}), "a: data_offsets must begin at 0, got 4"),
        (safetensors({"a": tensor("F32", [1], 0, 4)}), "the file must hold 4 bytes after its head"),
        (
            safetensors({"a": tensor("F32", [1], 0, 4)}, bytes(4)),
            "model.embed_tokens.weight must be among the weights",
        ),
        (
            safetensors({"model.embed_tokens.weight": tensor("F32", [1], 0, 4)}, bytes(4)),
            "model.embed_tokens.weight must have the shape [260, 128] that config.json asks for,",
        ),
    ],
)
def test_bad_weights(program, prompt, tmp_path, content, sentence):
    shutil.copy(MODEL / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    done = run(program, prompt, "--model", tmp_path)
    assert done.returncode == 1
    assert sentence in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "gpt2"}, "config.json: model_type must be llama"),
        ({"hidden_size": 1.5}, "config.json: hidden_size must be a whole number from 0 up"),
        ({"rms_norm_eps": None}, "config.json: rms_norm_eps must be a number"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "config.json: rope_type must be default"),
        ({"num_key_value_heads": 3}, "num_attention_heads must be a multiple of num_key_value_h"),
        ({"vocab_size": 50257}, f"--model must be one of bytes, with a vocab_size of {VOCAB_SIZE}"),
    ],
)
def test_bad_config(program, prompt, tmp_path, changes, sentence):
    config = json.loads((MODEL / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = run(program, prompt, "--model", tmp_path)
    assert done.returncode == 1
    assert sentence in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
