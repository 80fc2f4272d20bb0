"""A property that misses a class fails, and one that fails says how to repeat it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

PROPERTIES = """
from hits import decode_property
from hypothesis import settings

few = settings(max_examples=3, derandomize=True, database=None, deadline=None)
many = settings(few, max_examples=100, print_blob=True)


@few
@decode_property()
def test_of_few_examples(case):
    pass


@many
@decode_property()
def test_of_small_groups(case):
    assert case.group_size < 5
"""


def run_properties(folder, *arguments):
    plugins = ("-p", "conftest", "-p", "no:cacheprovider", "-p", "no:xdist")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", *plugins, *arguments, "."],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent)))},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def test_missed_classes_and_failures_are_told(tmp_path):
    (tmp_path / "test_two_properties.py").write_text(PROPERTIES)
    output = run_properties(tmp_path)
    assert "2 failed" in output
    assert re.search(r"no example was of the classes \[.*'law=zero'", output), output
    arguments = re.search(r"Repeat it: make fuzz ARGS='(.*)'", output)[1]
    repeated = run_properties(tmp_path, *shlex.split(arguments))
    assert "1 failed, 1 deselected" in repeated
    case = re.search(r"drawn=\(DecodeCase\((.*)\)", output)[1]
    assert "group_size=5" in case
    assert case in repeated
