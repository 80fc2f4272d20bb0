"""tools/gpu.py: stages are chosen, run within their time, and summed up, with or without a GPU."""

import json
import sys
import time
from pathlib import Path

import pytest

import command
import gpu
import stages

SLEEP = "import time; print('begun'); time.sleep(60)"
SAVE = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('saved')"


@pytest.fixture(autouse=True)
def short_and_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "GRACE_S", 0.5)
    monkeypatch.setattr(gpu, "WORK", tmp_path / "work")


def run(tmp_path, code, limit_s=30.0, **environment):
    with command.Log(tmp_path / "log") as log:
        words = [sys.executable, "-c", code]
        outcome = command.run_command(command.Command(words, environment), limit_s, tmp_path, log)
    return outcome, (tmp_path / "log").read_text()


def test_a_command_tells_its_outcome_and_last_line(tmp_path):
    outcome, log = run(tmp_path, "import os; print(os.environ['A']); print()", A="seen")
    assert outcome == (command.Outcome.PASSED, "seen")
    assert "A=seen" in log
    outcome, _ = run(tmp_path, "import sys; print('out'); sys.exit('bad')")
    assert outcome == (command.Outcome.FAILED, "bad")


def test_a_command_without_a_program_fails(tmp_path):
    with command.Log(tmp_path / "log") as log:
        outcome, reason = command.run_command(
            command.Command(["no-such-program"]), 1.0, tmp_path, log
        )
    assert outcome is command.Outcome.FAILED
    assert "no-such-program" in reason


@pytest.mark.parametrize(("code", "last"), [(SLEEP, "begun"), (SAVE, "saved")])
def test_a_command_ends_at_its_limit(tmp_path, code, last):
    begin_s = time.monotonic()
    outcome, _ = run(tmp_path, code, limit_s=3.0)  # Python takes a while to begin
    assert outcome[0] is command.Outcome.TIME_UP
    assert last in outcome[1] or "KeyboardInterrupt" in outcome[1]
    assert time.monotonic() - begin_s < 20.0


def test_a_command_takes_its_children_along(tmp_path):
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}])"
    begin_s = time.monotonic()
    outcome, _ = run(tmp_path, child, limit_s=1.0)
    assert outcome[0] is command.Outcome.TIME_UP
    assert time.monotonic() - begin_s < 20.0


def test_the_stages_fit_ten_minutes_and_run_what_exists():
    every = gpu.stages("9.0", {"xdist"})
    names = ["probe", "build", "smoke", "tests", "sanitizer", "bench", "generate", "profile"]
    assert [stage.name for stage in every] == names
    assert sum(stage.share_s for stage in every) <= 60 * gpu.parse([]).minutes
    for stage in every:
        for step in stage.commands(stage.share_s):
            for word in step.words:
                assert not word.endswith(".py") or Path(word).exists(), word
    assert "-n" not in stages.test_commands(set())[0].words


def test_stages_are_chosen_by_name(capsys):
    every = gpu.stages("9.0", {"xdist"})
    assert [stage.name for stage in gpu.chosen(every, "smoke, build")] == ["build", "smoke"]
    assert gpu.chosen(every, "") == every
    with pytest.raises(SystemExit, match=r"^gpu: --stages must be of probe, .*, got bild$"):
        gpu.chosen(every, "bild")
    assert gpu.main(["--list", "--stages", "bench"]) == 0
    assert capsys.readouterr().out.split()[0] == "bench"


def test_a_dry_run_says_what_it_would_run(tmp_path, capsys):
    out = tmp_path / "out"
    assert gpu.main(["--dry-run", "--arch", "10.0", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "-DTORCH_CUDA_ARCH_LIST=10.0" in printed
    assert "-arch=" not in printed
    assert "--arch sm_100" in printed
    assert "SIFT_REQUIRE_CUDA=1" in printed
    assert "PYTORCH_NO_CUDA_MEMORY_CACHING=1" in printed
    assert "--tool racecheck" in printed
    assert not out.exists()


def stage(name, *codes, share_s=10.0, tool=""):
    commands = [command.Command([sys.executable, "-c", code]) for code in codes]
    return gpu.Stage(name, "a test", share_s, lambda _: commands, tool)


def test_a_failed_stage_stops_nothing(monkeypatch, tmp_path, capsys):
    write = f"open({str(tmp_path / 'work' / 'x_cuda.json')!r}, 'w').write('{{}}'); print('wrote')"
    every = [
        stage("first", "raise SystemExit('bad')", "print('went on')"),
        stage("second", write),
        stage("third", "print('never')", tool="no-such-tool"),
    ]
    monkeypatch.setattr(gpu, "stages", lambda *_: every)
    out = tmp_path / "out"
    assert gpu.main(["--out", str(out)]) == 1

    summary = json.loads((out / "gpu.json").read_text())
    assert [result["status"] for result in summary["stages"]] == ["failed", "passed", "missing"]
    assert "bad" in summary["stages"][0]["note"]
    assert summary["stages"][1]["note"] == "wrote"
    assert (out / "x_cuda.json").read_text() == "{}"
    log = (out / "gpu.log").read_text()
    assert "went on" in log
    assert "never" not in log
    assert (
        log.strip().splitlines()[-1] == "third      missing     0.0 s  no-such-tool was not found"
    )
    assert capsys.readouterr().out == log

    monkeypatch.setattr(gpu, "stages", lambda *_: every[1:])
    assert gpu.main(["--out", str(out)]) == 0


def test_a_stage_leaves_the_later_ones_their_share(monkeypatch, tmp_path):
    every = [
        stage("slow", SLEEP, "print('no time for this')"),
        stage("quick", "print('done')", share_s=58.0),
    ]
    monkeypatch.setattr(gpu, "stages", lambda *_: every)
    assert gpu.main(["--out", str(tmp_path), "--minutes", "1"]) == 1
    slow, quick = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert slow["status"] == "time up"
    assert slow["seconds"] < 20.0
    assert (quick["status"], quick["note"]) == ("passed", "done")
