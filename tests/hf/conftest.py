"""Tiny models gain nothing from threads and lose much where cores are busy."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(same_start):
    torch.set_num_threads(1)
