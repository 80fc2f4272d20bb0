"""Settings that every test runs under."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from cases import is_refused_by_cuda
from devices import CAN_USE_CUDA, DEVICES, REQUIRE_CUDA
from sift_attention._library import HAS_CUDA

settings.register_profile(
    "every",
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],  # says something about the machine
)
every = settings.get_profile("every")
settings.register_profile("ci", every, derandomize=True, max_examples=120, database=None)
settings.register_profile("nightly", every, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Under SIFT_SIDE_STREAM=1 tests on CUDA run on a stream of their own, not on the default one.
SIDE_STREAM = os.environ.get("SIFT_SIDE_STREAM") == "1"


@pytest.fixture(autouse=True)
def same_start():
    """Every test draws the same random numbers; thread count and grad mode stay as they were."""
    num_threads, has_grad = torch.get_num_threads(), torch.is_grad_enabled()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(num_threads)
    torch.set_grad_enabled(has_grad)


@pytest.fixture(params=DEVICES)
def device(request):
    """Where the test creates its tensors, on every kind of device in turn."""
    if request.param == "cuda":
        request.getfixturevalue("cuda")
    return request.param


@pytest.fixture
def cuda():
    """A GPU, on which the test creates its tensors."""
    if not CAN_USE_CUDA:
        reason = "torch finds no GPU" if HAS_CUDA else "the operators were built for the CPU only"
        (pytest.fail if REQUIRE_CUDA else pytest.skip)(reason)
    stream = torch.cuda.Stream() if SIDE_STREAM else torch.cuda.current_stream()
    with torch.device("cuda"), torch.cuda.stream(stream):
        yield


def pytest_collection_modifyitems(config, items):
    """Leaves out what CUDA refuses, and what is about the CPU."""
    removed = [item for item in items if runs_on_cuda(item) and is_for_the_cpu(item)]
    config.hook.pytest_deselected(items=removed)
    items[:] = [item for item in items if item not in removed]


def runs_on_cuda(item):
    return hasattr(item, "callspec") and item.callspec.params.get("device") == "cuda"


def is_for_the_cpu(item):
    if item.get_closest_marker("cpu_only"):
        return True
    return any(is_refused_by_cuda(value) for value in item.callspec.params.values())
