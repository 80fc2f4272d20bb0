"""The examples in the docstrings run and print what they say."""

import doctest

import pytest
import torch

import sift_attention as sift

NAMES = [name for name in sift.__all__ if ">>>" in (getattr(sift, name).__doc__ or "")]


def test_there_are_examples():
    assert {"decode", "score_quantile", "fit_power_law", "PowerLaw"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_examples(name):
    names = {**{public: getattr(sift, public) for public in sift.__all__}, "torch": torch}
    example = doctest.DocTestParser().get_doctest(
        getattr(sift, name).__doc__, {**names, "sift_attention": sift}, name, None, 0
    )
    assert doctest.DocTestRunner().run(example).failed == 0
