"""The task generators: deterministic, honest about their answers, apart from the held-out text."""

import numpy as np
import pytest

from sift_attention.eval.corpus import read_standard_library, standard_library_files
from sift_attention.eval.tasks import TASKS
from sift_attention.eval.tokens import BOS, KEY, QRY, SEP, VOCAB_SIZE, decode, encode

LENGTHS = (64, 65, 100, 257, 1024)


@pytest.fixture(scope="module")
def corpus():
    return read_standard_library("held_out")


def draw(name, seed, length, corpus):
    return TASKS[name](np.random.default_rng(seed), length, corpus)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", TASKS)
def test_samples_are_well_formed_and_repeatable(name, length, corpus):
    for seed in range(20):
        sample, again = draw(name, seed, length, corpus), draw(name, seed, length, corpus)
        assert np.array_equal(sample.tokens, again.tokens)
        assert sample.tokens.dtype == np.int64
        assert len(sample.tokens) == len(sample.weights) == len(sample.answers) == length
        assert sample.tokens[0] == BOS
        assert sample.weights[0] == 0
        assert sample.tokens.min() >= 0
        assert sample.tokens.max() < VOCAB_SIZE
        assert (sample.weights[sample.answers] > 0).all()
        assert sample.answers.any() == (name != "text")
    assert not np.array_equal(sample.tokens, draw(name, 99, length, corpus).tokens)


@pytest.mark.parametrize("length", LENGTHS)
def test_repeats_answers_stand_one_period_earlier(length, corpus):
    for seed in range(20):
        sample = draw("repeats", seed, length, corpus)
        answers = np.flatnonzero(sample.answers)
        period = answers[0] - 3
        assert np.array_equal(sample.tokens[answers], sample.tokens[answers - period])


@pytest.mark.parametrize("length", LENGTHS)
def test_mqar_answers_stand_in_the_list_of_pairs(length, corpus):
    for seed in range(20):
        sample = draw("mqar", seed, length, corpus)
        end = int(np.flatnonzero(sample.tokens == SEP)[0])
        keys, values = sample.tokens[1:end:2], sample.tokens[2:end:2]
        assert len(set(keys)) == len(keys)
        told = dict(zip(keys, values, strict=True))
        for position in np.flatnonzero(sample.answers):
            assert position > end
            assert sample.tokens[position] == told[sample.tokens[position - 1]]


@pytest.mark.parametrize("length", LENGTHS)
def test_needle_answers_stand_in_one_earlier_record(length, corpus):
    for seed in range(20):
        sample = draw("needles", seed, length, corpus)
        told = {}
        for start in np.flatnonzero(sample.tokens == KEY):
            _, first, second, mark, *value = sample.tokens[start : start + 6]
            assert mark == SEP
            assert (first, second) not in told
            told[first, second] = value
        asked = np.flatnonzero(sample.tokens == QRY)
        assert len(asked) > 0
        for start in asked:
            _, first, second, mark, *value = sample.tokens[start : start + 6]
            assert mark == SEP
            assert told[first, second] == value
            assert sample.answers[start : start + 6].tolist() == [False] * 4 + [True] * 2
        assert sample.answers.sum() == 2 * len(asked)


def test_held_out_files_are_disjoint_and_a_twentieth():
    held_out, train = standard_library_files("held_out"), standard_library_files("train")
    assert not set(held_out) & set(train)
    assert 0.02 < len(held_out) / len(held_out + train) < 0.10
    assert held_out == standard_library_files("held_out")
    with pytest.raises(ValueError, match="split must be 'train' or 'held_out', got 'test'"):
        standard_library_files("test")


def test_text_round_trips_and_marks_are_shown():
    text = "def π():  # ✓\n"
    assert decode(encode(text)) == text
    assert decode(np.array([BOS, KEY, 97, SEP, 98, QRY])) == "<bos><key>a<sep>b<qry>"


@pytest.mark.parametrize("name", TASKS)
def test_too_short_a_sequence_or_corpus_is_refused(name, corpus):
    with pytest.raises(ValueError, match=f"{name}: length must be at least 64, got 63"):
        draw(name, 0, 63, corpus)
    if name in ("text", "needles"):
        with pytest.raises(ValueError, match="corpus must have at least 99 bytes, got 10"):
            draw(name, 0, 100, corpus[:10])
