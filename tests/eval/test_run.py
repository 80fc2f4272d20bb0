"""Running an evaluation: cells, refusals, worker processes, interruption, continuation."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
from sift_attention import SiftConfig  # noqa: E402
from sift_attention.eval import arguments, cells, options, run, workers  # noqa: E402
from sift_attention.eval.cells import Cell, Group, Store  # noqa: E402
from sift_attention.eval.options import Options, RefusedError  # noqa: E402
from sift_attention.eval.policies import Policy  # noqa: E402
from sift_attention.eval.policies.base import attend  # noqa: E402
from sift_attention.eval.policies.exact import Exact  # noqa: E402
from sift_attention.eval.tasks import EVALUATION_TASKS  # noqa: E402

GROUP = Group("mqar", 512, 0, 1, 256)


@dataclass(frozen=True)
class Newest(Policy):
    """Reads the newest rows only; a negative count ends the process, zero raises."""

    source = "hand-worked"
    count: int

    def read(self, rows):
        if self.count < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count == 0:
            raise ArithmeticError("nothing to read")
        age = rows.lengths[:, None] - 1 - torch.arange(rows.k.shape[0])
        return attend(rows, (age < self.count).expand_as(rows.p))

    def sift_config(self):
        return SiftConfig() if self.count == 7 else None


FAMILIES = {
    "exact": [Exact()],
    "newest": [Newest(64), Newest(16)],
    "default": [Newest(7)],
    "raises": [Newest(64), Newest(0)],
    "dies": [Newest(64), Newest(-1)],
}


@pytest.fixture(autouse=True)
def few_families(monkeypatch):
    for module in (arguments, cells, options, run):
        monkeypatch.setattr(module, "families", lambda: FAMILIES)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    config = transformers.LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def asked(model, tmp_path):
    """A small evaluation that an untrained model passes."""
    return Options(
        out=tmp_path / "out",
        model=model,
        tasks=("mqar",),
        policies=("newest",),
        lengths=(512,),
        seeds=1,
        sequences=1,
        min_accuracy=0.0,
        stepwise=("none",),
        workers=1,
    )


def files(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}


def test_a_cell_is_told_apart_by_all_that_determines_it():
    cell = Cell(GROUP, "newest", Newest(64))
    assert cell.id("m") == Cell(GROUP, "newest", Newest(64)).id("m")
    others = [replace(cell, group=replace(GROUP, **{k: v})) for k, v in NEIGHBOURS.items()]
    others += [
        replace(cell, family="other"),
        replace(cell, policy=Newest(65)),
        replace(cell, protocol="stepwise"),
    ]
    ids = {cell.id("m"), cell.id("n"), *(other.id("m") for other in others)}
    assert len(ids) == 2 + len(others)


NEIGHBOURS = {"task": "text", "length": 513, "seed": 1, "sequences": 2, "start": 255}


def test_the_code_of_a_policy_counts_and_that_of_others_does_not(tmp_path, monkeypatch):
    source = tmp_path / "mine.py"
    (tmp_path / "beside.py").write_text("x = 1\n")
    (tmp_path / "unrelated.py").write_text("y = 1\n")
    source.write_text("from .beside import x\n")
    monkeypatch.setattr(cells.inspect, "getfile", lambda _: str(source))
    code = cells._code.__wrapped__
    before = code(Newest)
    (tmp_path / "unrelated.py").write_text("y = 2\n")
    assert code(Newest) == before
    (tmp_path / "beside.py").write_text("x = 2\n")
    assert code(Newest) != before


def test_results_are_written_whole_with_null_for_nan(tmp_path):
    store, cell = Store(tmp_path, "m"), Cell(GROUP, "newest", Newest(64))
    assert not store.has(cell)
    assert store.load(cell) is None
    measured = {"kl": math.nan, "layers": [{"v_fraction": math.inf}], "num_tokens": 3}
    cells.write_json(store.path(cell), {**cell.describe(), **measured})
    result = store.load(cell)
    assert (result["kl"], result["layers"], result["num_tokens"]) == (
        None,
        [{"v_fraction": None}],
        3,
    )
    assert (result["family"], result["policy"]) == ("newest", "Newest(count=64)")
    assert [path.suffix for path in (tmp_path / "cells").iterdir()] == [".json"]


def test_jobs_hold_cells_of_one_group_and_at_most_so_many():
    other = replace(GROUP, seed=1)
    made = [Cell(g, "newest", Newest(n + 1)) for n in range(5) for g in (GROUP, other)]
    found = list(cells.jobs(made, largest=3))
    assert [len(job) for job in found] == [3, 2, 3, 2]
    assert all(len({cell.group for cell in job}) == 1 for job in found)
    assert sorted(repr(cell) for job in found for cell in job) == sorted(map(repr, made))


def test_the_guard_sees_all_seeds_together():
    def result(accuracy, num_answers, bits, num_tokens):
        exact = {"accuracy": accuracy, "bits_per_token": bits}
        return {
            "exact": exact,
            "num_answers": num_answers,
            "num_tokens": num_tokens,
            "order0_bits": 5.0,
        }

    accuracy, bits, order0 = run._pooled([result(1.0, 30, 1.0, 30), result(0.5, 10, 3.0, 10)])
    assert (accuracy, bits, order0) == (0.875, 1.5, 5.0)
    accuracy, bits, _ = run._pooled([result(None, 0, 2.0, 10), result(None, 0, 4.0, 10)])
    assert math.isnan(accuracy)
    assert bits == 3.0
    assert math.isnan(run._pooled([result(1.0, 5, None, 5)])[1])


def test_the_operator_runs_the_settings_that_have_a_configuration():
    assert cells.operator_settings(["default"]) == [("default", Newest(7))]
    assert cells.operator_settings(["newest"]) == []
    assert cells.operator_settings(["none"]) == []


def test_families_are_found_by_name_in_any_case_and_by_file(asked):
    assert replace(asked, policies=("Dies", "newest")).family_names == ("dies", "newest")
    assert replace(asked, policies=("test_run",)).family_names == tuple(FAMILIES)[1:]
    words = ["--policies", "newest,sift, rows per head,quest"]
    found = arguments.parser().parse_args(words).policies
    assert found == ("newest", "sift, rows per head", "quest")
    assert replace(asked, policies=None).family_names == tuple(FAMILIES)
    assert replace(asked, stepwise=("default", "Newest")).operator_names == ("default", "newest")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tasks": ("txt",)}, r"--tasks must be of text, repeats, .*, got txt"),
        ({"tasks": ("mqar", "mqar")}, "--tasks must be each named once, got mqar,mqar"),
        ({"policies": ("quest",)}, "--policies must be of exact; newest; .*, got quest"),
        ({"stepwise": ("quest",)}, "--stepwise must be of exact; newest; .*, got quest"),
        ({"stepwise": ("newest",)}, "--stepwise must be settings that the operator can run"),
        ({"stepwise": ("none", "default")}, "--stepwise must be none alone, or settings"),
        ({"free_running": True}, "--free-running runs the settings of --stepwise, got none"),
        ({"drift": 100}, "--drift runs the settings of --stepwise, got none"),
        ({"lengths": (512, 511)}, "--lengths must be at least 512, got 511"),
        ({"lengths": (512, 512)}, "--lengths must be each named once, got 512,512"),
        (
            {"lengths": (1025,)},
            "--lengths must be at most the 1024 positions of the model",
        ),
        (
            {"drift": 513, "stepwise": ("default",)},
            "--drift must be at most 512 steps, after 512 tokens in 1024 positions, got 513",
        ),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"sequences": 0}, "--sequences must be at least 1, got 0"),
        ({"workers": -1}, "--workers must be at least 0, got -1"),
        ({"budget": (0.1, 0.0)}, "--budget must be shares above 0 and up to 1, got 0.1,0.0"),
        ({"min_accuracy": 1.5}, "--min-accuracy must be 0 to 1, got 1.5"),
        ({"device": "gpu"}, "--device must be usable here, got gpu"),
        ({"dtype": "int8"}, "--dtype must be one of auto, float32, bfloat16, float16, got int8"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(asked, changes, sentence):
    with pytest.raises(RefusedError, match=f"^eval: {sentence}"):
        replace(asked, **changes).check()
    assert not asked.out.exists()


def test_folders_without_a_fitting_model_are_refused(asked, tmp_path):
    with pytest.raises(RefusedError, match=r"--model must be a folder with config.json"):
        replace(asked, model=tmp_path).check()
    transformers.ReformerConfig(is_decoder=True).save_pretrained(tmp_path)
    with pytest.raises(
        RefusedError, match="eval: model must attend through AttentionInterface, got Ref"
    ):
        replace(asked, model=tmp_path).check()
    transformers.LlamaConfig(vocab_size=300, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(
        RefusedError, match="eval: --model must have a tokenizer or a vocab_size of 260, got 300 in"
    ):
        replace(asked, model=tmp_path).check()
    transformers.T5Config().save_pretrained(tmp_path)
    with pytest.raises(RefusedError, match=r"eval: .*T5Config"):
        replace(asked, model=tmp_path).check()


def test_an_evaluation_refuses_measures_and_continues(asked, monkeypatch):
    asked = replace(asked, tasks=("text", "mqar"), workers=2)
    results = run.evaluate(asked, progress=False)
    # An untrained model needs 8 bits per byte; the bytes of the text have less than 6.
    assert [(r["task"], r["length"]) for r in results["refused"]] == [("text", 512)]
    assert "order-0 entropy" in results["refused"][0]["reason"]
    assert results["missing"] == 0
    assert {cell["task"] for cell in results["cells"]} == {"mqar"}
    assert [cell["protocol"] for cell in results["cells"]] == ["simulated"] * 3 + ["quantiles"]
    measured = {cell["policy"]: cell for cell in results["cells"][:3]}
    assert list(measured) == ["Exact()", "Newest(count=64)", "Newest(count=16)"]
    assert measured["Exact()"]["kl"] < 1e-6
    # Each of the 256 steps attends 257 ... 512 keys and reads 64 or 16 of them.
    for count in (64, 16):
        share = sum(count / keys for keys in range(257, 513)) / 256
        assert measured[f"Newest(count={count})"]["v_fraction"] == pytest.approx(share)
        assert measured[f"Newest(count={count})"]["kl"] > 1e-6
    assert json.loads((asked.out / "results.json").read_text())["cells"] == results["cells"]
    assert results["environment"]["options"]["budget"] == asked.budget
    assert results["families"]["newest"]["source"] == "hand-worked"

    before = files(asked.out)
    with monkeypatch.context() as patched:
        patched.setattr(run, "Workers", None)  # nothing is left to be measured
        again = run.evaluate(asked, progress=False)
    assert again["cells"] == results["cells"]
    assert again["environment"]["wall_s"] > results["environment"]["wall_s"]
    assert files(asked.out) == before

    lost = next(iter(before))
    (asked.out / "cells" / lost).unlink()
    assert run.evaluate(asked, progress=False)["cells"] == results["cells"]
    after = files(asked.out)
    assert after.pop(lost) > before.pop(lost)
    assert after == before


def test_a_folder_with_results_of_another_model_is_refused(asked, model, tmp_path):
    run._claim(asked.out, {"model": "model", "weights": "1"})
    with pytest.raises(RefusedError, match=r"got .* with results of model \(weights 1\)"):
        run.evaluate(asked, progress=False)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(RefusedError, match="--out must be a folder, got the file"):
        run.evaluate(replace(asked, out=file), progress=False)


@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        ("raises", "a worker failed at raises on mqar: ArithmeticError: nothing to read; see .*"),
        ("dies", "a worker ended with exit code -9, as when memory runs out"),
    ],
)
def test_a_worker_that_fails_ends_the_run_but_loses_nothing(asked, family, sentence):
    asked = replace(asked, policies=(family,))
    with pytest.raises(workers.WorkerError, match=f"^{sentence}$"):
        run.evaluate(asked, progress=False)
    results = json.loads((asked.out / "results.json").read_text())
    assert [cell["policy"] for cell in results["cells"]] == ["Exact()", "Newest(count=64)"]
    assert results["missing"] == 2  # the one that failed, and the quantiles
    assert (asked.out / "failure.txt").exists() == (family == "raises")


def test_ctrl_c_stops_and_the_same_command_continues(model, tmp_path):
    out = tmp_path / "out"
    words = "--tasks mqar --policies streaming_llm --lengths 512 --seeds 40 --sequences 1"
    words += f" --min-accuracy 0 --stepwise none --workers 1 --model {model} --out {out}"
    command = [sys.executable, "-m", "sift_attention.eval", *words.split()]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def wait_for_cells(count):
        while process.poll() is None and len(list(out.glob("cells/*.json"))) < count:
            time.sleep(0.05)

    wait_for_cells(1)
    # Its children leave the decision to it.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for child in children.read_text().split() if children.exists() else ():
        os.kill(int(child), signal.SIGINT)
    wait_for_cells(3)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert "eval: stopped; what is finished is kept, and the same command continues." in errors
    assert "Traceback" not in errors
    results = json.loads((out / "results.json").read_text())
    assert results["missing"] > 0
    assert not list(out.glob("cells/.*"))


def test_lists_name_everything():
    parser = arguments.parser()
    shown = arguments.listing(parser.parse_args(["--tasks", "list", "--policies", "list"]))
    for name in [*EVALUATION_TASKS, *FAMILIES]:
        assert f"{name} " in shown
    assert "hand-worked" in shown
    assert arguments.listing(parser.parse_args([])) is None
