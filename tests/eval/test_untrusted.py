"""An evaluation only reads: models that bring code or pickles, results that hold HTML or paths."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from made_up_results import made_up_results, write

transformers = pytest.importorskip("transformers")
from sift_attention.eval.local import LOCAL_WEIGHTS  # noqa: E402
from sift_attention.eval.options import Options, RefusedError  # noqa: E402
from sift_attention.eval.report import write_report  # noqa: E402

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>../../../etc"

# Python imports this in every process of an evaluation, the workers too.
WATCH = """
import os, sys

def hook(event, arguments):
    if event == "pickle.find_class":
        kind, name = "unpickled", ".".join(arguments)
    elif event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        kind, name = "network", f"{event} {arguments[1:]}"
    else:
        return
    with open(os.environ["WATCHED"], "a") as file:
        print(kind, name, file=file)
    if kind == "network":
        raise RuntimeError(f"{event} is forbidden")

sys.addaudithook(hook)
"""


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    config = transformers.LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=1024,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_an_evaluation_meets_no_network_and_unpickles_only_what_it_sent(model, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    seen = tmp_path / "seen.txt"
    words = "--tasks mqar --policies streaming_llm --lengths 512 --seeds 1 --sequences 1"
    words += f" --min-accuracy 0 --workers 1 --model {model} --out {tmp_path / 'out'}"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "WATCHED": str(seen)}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "sift_attention.eval", *words.split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"simulated", "stepwise"} <= {cell["protocol"] for cell in results["cells"]}
    lines = seen.read_text().splitlines()
    # What the parent sends to a worker through their pipe: cells, the model's folder.
    assert "unpickled sift_attention.eval.cells.Cell" in lines
    sent = ("sift_attention.eval.", "multiprocessing.", "pathlib.", "_socket.", "socket.")
    sent = tuple(f"unpickled {name}" for name in sent)
    assert [line for line in lines if not line.startswith(sent)] == []


def test_code_beside_a_model_is_not_run(model, tmp_path):
    ran = tmp_path / "ran"
    (model / "mine.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedError, match=r"^eval: --model must be of a type that transformers "):
        Options(tmp_path / "out", model=model).check()
    assert not ran.exists()


def test_pickled_weights_are_refused(model, tmp_path):
    (weights,) = model.glob("*.safetensors")
    weights.unlink()
    torch.save({}, model / "pytorch_model.bin")
    with pytest.raises(RefusedError, match=r"^eval: --model must be a folder with weights as safe"):
        Options(tmp_path / "out", model=model).check()
    with pytest.raises(OSError, match="safetensors"):
        transformers.AutoModelForCausalLM.from_pretrained(model, **LOCAL_WEIGHTS)


class Tags(HTMLParser):
    """The tags of a page, and the names of their attributes."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text.append(data)


def test_hostile_names_stay_text_in_a_report(tmp_path):
    pytest.importorskip("matplotlib")
    results = made_up_results()
    results["environment"] |= {"model": HOSTILE, "cpu": HOSTILE}
    results["refused"][0] |= {"task": HOSTILE, "reason": HOSTILE}
    results["families"][HOSTILE] = results["families"].pop("sketch") | {"source": HOSTILE}
    for cell in results["cells"]:
        if cell["family"] == "sketch":
            cell |= {"family": HOSTILE, "policy": f"Sketch(share={HOSTILE!r})"}
        if cell["task"] == "mqar":
            cell["task"] = HOSTILE
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    page = write_report(write(folder, results)).read_text()
    reader = Tags()
    reader.feed(page)
    assert HOSTILE in "".join(reader.text)
    assert {"table", "img"} <= reader.tags
    assert not {"script", "iframe", "object", "embed", "link", "form", "a", "svg"} & reader.tags
    assert reader.attributes <= {"alt", "charset", "class", "content", "http-equiv", "lang", "src"}
    assert "default-src 'none'" in page
    files = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    inside = Path("deep", "folder")
    assert {path.parent for path in files} == {inside, inside / "plots"}
