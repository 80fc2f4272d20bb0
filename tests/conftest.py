"""Settings that every test runs under."""

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("ci", deadline=None, derandomize=True, max_examples=60, database=None)
settings.register_profile("nightly", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def same_start():
    """Every test draws the same random numbers and leaves the thread count as it was."""
    num_threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(num_threads)
