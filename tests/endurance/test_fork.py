"""Processes that are forked off after, and in the midst of, the use of the package."""

from __future__ import annotations

import multiprocessing
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from configurations import QUANTILE
from modes import generate, prompt
from scale import progress, scaled
from tiny_models import build
from torch.utils.data import DataLoader, Dataset

import sift_attention as sift

TIMEOUT = 120  # seconds for a child that needs one

pytestmark = [
    pytest.mark.skipif(
        "fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork"
    ),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def in_child(work: Callable[[], bool]) -> bool:
    """Whether `work` returns true in a forked process, within the timeout."""

    def exit_with_result() -> None:
        # What threads ran before the fork are gone. PyTorch's DataLoader does the same.
        torch.set_num_threads(1)
        raise SystemExit(0 if work() else 1)

    child = multiprocessing.get_context("fork").Process(target=exit_with_result)
    child.start()
    child.join(TIMEOUT)
    if child.is_alive():
        child.kill()
        child.join()
        pytest.fail("the child hangs")
    return child.exitcode == 0


def attend(seed: int = 0) -> torch.Tensor:
    """One decode call over enough keys to be shared among threads."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 8, 64, generator=generator)
    k = torch.randn(2, 2, 5000, 64, generator=generator)
    return sift.decode(q, k, k, sift.PowerLaw.uniform(2.0), v_sum=k.sum(2))


@pytest.mark.row(30)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_child_calls_the_operator(num_threads):
    torch.set_num_threads(num_threads)
    expected = attend()
    for _ in progress(range(scaled(50, 2)), "children"):
        assert in_child(lambda: torch.equal(attend(), expected))
    assert torch.equal(attend(), expected)


@pytest.mark.row(30)
def test_a_child_generates():
    model, tokens = build("llama"), prompt(2, 140)
    with sift.hf.enabled(model, QUANTILE) as handle:
        expected = generate(model, tokens)[1]
        calls = handle.stats().total.decode_calls

        def work() -> bool:
            same = torch.equal(generate(model, tokens)[1], expected)
            return same and handle.stats().total.decode_calls == 2 * calls

        for _ in range(scaled(20, 2)):
            assert in_child(work)
        assert handle.stats().total.decode_calls == calls
        assert torch.equal(generate(model, tokens)[1], expected)


@pytest.mark.row(30)
def test_a_child_of_a_process_whose_threads_are_decoding():
    """The lock of the counters is free in the child, whoever held it."""
    k = torch.randn(1, 1, 8, 32)
    states = [sift.SiftState(sift.SiftConfig(min_keys=0)) for _ in range(4)]
    for state in states:
        state.decode(k[:, :, 0], k, k)
        state.counters = states[0].counters
    is_over = threading.Event()

    def keep_decoding(state: sift.SiftState) -> None:
        while not is_over.is_set():
            state.decode(k[:, :, 0], k, k)

    def work() -> bool:
        states[0].decode(k[:, :, 0], k, k)
        states[0].counters.fold()
        return True

    threads = [threading.Thread(target=keep_decoding, args=(state,)) for state in states]
    for thread in threads:
        thread.start()
    try:
        for _ in progress(range(scaled(200, 5)), "forks"):
            assert in_child(work)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


class Attended(Dataset[torch.Tensor]):
    """Items that the workers compute with the operator."""

    def __len__(self) -> int:
        return scaled(200, 6)

    def __getitem__(self, index: int) -> torch.Tensor:
        return attend(index)


def test_workers_of_a_data_loader():
    torch.set_num_threads(2)
    expected = [attend(i) for i in range(len(Attended()))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more workers than this machine may have cores
        loader = DataLoader(
            Attended(),
            batch_size=1,
            num_workers=2,
            multiprocessing_context="fork",
            timeout=TIMEOUT,
        )
        items = [batch[0] for batch in loader]
    assert all(map(torch.equal, items, expected))
    assert len(items) == len(expected)
