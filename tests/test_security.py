"""What docs/security.md promises: nothing is unpickled, fetched or run that was only to be read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sift_attention
from audit import complaints

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(sift_attention.__file__).parent
# What single files do nevertheless: ask git for the commit of the checkout that is measured, and
# the C library to keep memory.
ALLOWED = {"eval/environment.py": "imports subprocess", "eval/worker.py": "imports ctypes"}


def found_in(folder):
    """File by file, what the audit complains of."""
    paths = [path for path in sorted(folder.rglob("*.py")) if "build" not in path.parts]
    assert paths
    found = ((path, complaints(path.read_text(), path.name)) for path in paths)
    return {path.relative_to(folder).as_posix(): lines for path, lines in found if lines}


def test_the_package_runs_unpickles_and_fetches_nothing():
    found = found_in(PACKAGE)
    assert found.keys() == ALLOWED.keys()
    for name, (line,) in found.items():
        assert line.endswith(f"code execution: {ALLOWED[name]}")


def test_the_examples_unpickle_and_fetch_nothing():
    for lines in found_in(ROOT / "examples").values():
        assert all(line.endswith("code execution: imports subprocess") for line in lines)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("import pickle", "unpickling"),
        ("from pickle import loads as read", "unpickling"),
        ("def f():\n    import urllib.request", "networks"),
        ("from http.client import HTTPConnection", "networks"),
        ("import subprocess as s", "code execution"),
        ("eval('1')", "code execution"),
        ("x = [exec(line) for line in lines]", "code execution"),
        ("os.system(command)", "code execution"),
        ("torch.load(path)", "unpickling"),
        ("torch.load(path, weights_only=False)", "unpickling"),
        ("np.load(path, allow_pickle=True)", "unpickling"),
        ("AutoConfig.from_pretrained(name)", "networks"),
        ("f(name, local_files_only=True, trust_remote_code=True)", "code execution"),
        ("run(command, shell=True)", "code execution"),
    ],
)
def test_the_audit_sees(source, kind):
    (found,) = complaints(source, "planted.py")
    assert found.startswith("planted.py:")
    assert f" {kind}: " in found


@pytest.mark.parametrize(
    "source",
    [
        "from .pickle import x",
        "model.eval()",
        "torch.compile(model)",
        "re.compile('a')",
        "torch.load(path, weights_only=True)",
        "AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)",
    ],
)
def test_the_audit_lets_pass(source):
    assert complaints(source, "planted.py") == []


# Python tells a hook of what happens in it, in C code too. The hook is there before ours is
# imported, but after torch and transformers, which start programs and load libraries of their own.
WATCH = """
import json, sys
import torch, transformers
from transformers.models.llama import modeling_llama

seen = []
def hook(event, arguments):
    if event in ("pickle.find_class", "subprocess.Popen", "os.system", "ctypes.dlopen") or (
        event.startswith(("socket.", "urllib.", "http."))
    ):
        seen.append([event, *map(str, arguments)])
sys.addaudithook(hook)
"""
USE = """
import sift_attention as sift

config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, head_dim=32, eos_token_id=None,
)
model = transformers.LlamaForCausalLM(config).eval()
tokens = torch.arange(60)[None] % 61 + 3
settings = sift.SiftConfig(threshold="quantile", min_keys=1)
with sift.hf.enabled(model, settings) as handle:
    model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4, pad_token_id=0)
assert handle.stats().total.decode_calls > 0
print(json.dumps(seen))
"""


def watched(program):
    command = [sys.executable, "-c", WATCH + program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_calibrating_and_generating_load_one_library_and_nothing_else():
    loaded = [str(path) for path in sorted((PACKAGE / "lib").glob("*.so"))]
    seen = watched(USE)
    assert {event for event, *_ in seen} == {"ctypes.dlopen"}
    assert {path for _, path in seen} <= set(loaded)
    assert str(PACKAGE / "lib" / "libsift_attention.so") in {path for _, path in seen}


def test_the_hook_sees():
    program = """
import pickle, socket, subprocess
pickle.loads(pickle.dumps(torch.float32))
try: socket.create_connection(("127.0.0.1", 9), timeout=1)
except OSError: pass
subprocess.run(["true"])
print(json.dumps(seen))
"""
    events = {event for event, *_ in watched(program)}
    assert {"pickle.find_class", "socket.connect", "subprocess.Popen"} <= events
