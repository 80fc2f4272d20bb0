"""What the properties share: counted classes, one line that repeats a failure, a progress bar."""

import os
import re

import pytest
from hits import HITS
from hypothesis import __version__, reproduce_failure

from levels import VARIABLE


def pytest_addoption(parser):
    parser.addoption("--repeat", metavar="BLOB", help="run the one example that failed")


def pytest_collection_modifyitems(config, items):
    blob = config.getoption("--repeat", None)
    for item in items if blob else ():
        reproduce_failure(__version__, blob.encode())(item.obj)


@pytest.fixture(autouse=True)
def level_stays_as_it_was(monkeypatch):
    monkeypatch.setenv(VARIABLE, os.environ.get(VARIABLE, ""))
    if not os.environ[VARIABLE]:
        monkeypatch.delenv(VARIABLE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    HITS.clear()
    try:
        result = yield
    except Exception as error:
        found = re.search(r"reproduce_failure\('.*', b'(.*)'\)", "\n".join(error.__notes__))
        if found:
            arguments = f"-k {item.originalname} --repeat={found[1]}"
            error.add_note(f'Repeat it with: make fuzz ARGS="{arguments}"')
        raise
    inner = item.obj.hypothesis.inner_test
    if hasattr(inner, "expected_classes") and not item.config.getoption("--repeat", None):
        missed = sorted(inner.expected_classes() - HITS.keys())
        assert not missed, f"no example was of the classes {missed}"
    return result
