"""Loads on tiny models: shortened in the test suite, in full under SIFT_ENDURANCE=1."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "hf"))  # its tiny models


@pytest.fixture(autouse=True)
def one_thread(same_start):
    torch.set_num_threads(1)
