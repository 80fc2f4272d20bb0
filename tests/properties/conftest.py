"""What the properties share: counted classes, one line that repeats a failure, a progress bar."""

import functools
import os
import re

import pytest
from hits import HITS
from hypothesis import __version__, reproduce_failure, settings
from tqdm import tqdm

from levels import VARIABLE

BLOB = re.compile(r"reproduce_failure\('.*', b'(.*)'\)")


def pytest_addoption(parser):
    parser.addoption("--repeat", metavar="BLOB", help="run the one example that failed")


def pytest_collection_modifyitems(config, items):
    blob = config.getoption("--repeat", None)
    for test in {item.obj for item in items if blob and hasattr(item.obj, "hypothesis")}:
        reproduce_failure(__version__, blob.encode())(test)


@pytest.fixture(autouse=True)
def level_stays_as_it_was(monkeypatch):
    """Every example chooses its own."""
    before = os.environ.get(VARIABLE)
    monkeypatch.setenv(VARIABLE, before or "")  # and is undone
    if before is None:
        del os.environ[VARIABLE]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    if not hasattr(item.obj, "hypothesis"):
        return (yield)
    HITS.clear()
    handle = item.obj.hypothesis
    test = handle.inner_test
    with tqdm(
        desc=item.name,
        total=settings().max_examples,
        unit=" examples",
        mininterval=1.0,
        disable=item.config.getoption("capture") != "no",
    ) as progress:
        handle.inner_test = counted(test, progress)
        try:
            result = yield
        except Exception as error:
            blob = BLOB.search("\n".join(getattr(error, "__notes__", ())))
            if blob:
                arguments = f"-k {item.originalname} --repeat={blob[1]}"
                error.add_note(f"Repeat it: make fuzz ARGS='{arguments}'")
            raise
        finally:
            handle.inner_test = test
    if not item.config.getoption("--repeat", None):
        missed = sorted(test.expected_classes() - HITS.keys())
        assert not missed, f"no example was of the classes {missed}"
    return result


def counted(test, progress):
    @functools.wraps(test)
    def count(*args, **kwargs):
        progress.update()
        return test(*args, **kwargs)

    return count
