"""The task generators: deterministic, honest about their answers, apart from the held-out text."""

import sys
from collections import Counter

import numpy as np
import pytest

from sift_attention.eval.corpus import read_prose, read_standard_library, standard_library_files
from sift_attention.eval.tasks import EVALUATION_TASKS, STRESS_TASKS, TASKS
from sift_attention.eval.tokens import BOS, KEY, QRY, SEP, VOCAB_SIZE, decode, encode

LENGTHS = (64, 65, 100, 257, 1024)
WITHOUT_ANSWERS = ("text", "topic_shift")
# Share of the training weight that the answers get, where other tokens get some too.
ANSWER_SHARES = {"needles": 0.4, "passkey": 0.2, "tracking": 0.4}


@pytest.fixture(scope="module")
def corpus():
    return read_standard_library("held_out")


def draw(name, seed, length, corpus):
    return EVALUATION_TASKS[name](np.random.default_rng(seed), length, corpus)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", EVALUATION_TASKS)
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
        assert sample.answers.any() == (name not in WITHOUT_ANSWERS)
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
@pytest.mark.parametrize("name", EVALUATION_TASKS)
def test_sources_are_earlier_and_hold_the_answer(name, length, corpus):
    for seed in range(20):
        sample = draw(name, seed, length, corpus)
        positions = np.flatnonzero(sample.sources >= 0)
        sources = sample.sources[positions]
        assert (sample.sources >= -1).all()
        assert (sources < positions).all()
        assert np.array_equal(sample.tokens[sources], sample.tokens[positions])
        counted = name in ("frequent", "common")
        assert np.array_equal(sample.sources >= 0, sample.answers & (not counted))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ANSWER_SHARES)
def test_answers_get_their_share_of_the_weight(name, length, corpus):
    for seed in range(20):
        sample = draw(name, seed, length, corpus)
        share = sample.weights[sample.answers].sum() / sample.weights.sum()
        assert share == pytest.approx(ANSWER_SHARES[name], rel=1e-5)


def told_and_asked(tokens):
    """The records {key: (value, place)} and the places of the questions; no key is told twice."""
    told = {}
    for start in np.flatnonzero(tokens == KEY):
        _, first, second, mark, *value = tokens[start : start + 6].tolist()
        assert mark == SEP
        assert (first, second) not in told
        told[first, second] = tuple(value), start
    return told, np.flatnonzero(tokens == QRY)


@pytest.mark.parametrize("length", LENGTHS)
def test_every_needle_is_asked_once(length, corpus):
    for seed in range(20):
        sample = draw("needles", seed, length, corpus)
        told, asked = told_and_asked(sample.tokens)
        keys = []
        for start in asked:
            _, first, second, mark, *value = sample.tokens[start : start + 6].tolist()
            assert mark == SEP
            keys.append((first, second))
            expected, place = told[first, second]
            assert tuple(value) == expected
            assert place < length // 2 <= start
            assert sample.answers[start : start + 6].tolist() == [False] * 4 + [True] * 2
            assert sample.sources[start + 4 : start + 6].tolist() == [place + 4, place + 5]
        assert sorted(keys) == sorted(told)
        assert len(keys) == length // 64 or length < 128
        assert sample.answers.sum() == 2 * len(keys)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_passkey_is_asked_at_the_end(length, corpus):
    depths = []
    for seed in range(100):
        sample = draw("passkey", seed, length, corpus)
        told, asked = told_and_asked(sample.tokens)
        assert asked.tolist() == [length - 6]
        ((key, (value, place)),) = told.items()
        assert sample.tokens[-6:].tolist() == [QRY, *key, SEP, *value]
        assert np.flatnonzero(sample.answers).tolist() == [length - 2, length - 1]
        assert sample.sources[-2:].tolist() == [place + 4, place + 5]
        depths.append(place / length)
    assert min(depths) < 0.1
    assert 0.75 < max(depths) < 0.9


@pytest.mark.parametrize("length", LENGTHS)
def test_chains_of_variables_can_be_walked(length, corpus):
    hops = 2 if length < 72 else 3  # in 64 tokens two records may be all that fits
    for seed in range(20):
        sample = draw("tracking", seed, length, corpus)
        told, asked = told_and_asked(sample.tokens)
        places, answers = [], []
        for start in asked:
            assert start >= length // 2
            name = tuple(sample.tokens[start + 1 : start + 3].tolist())
            assert name not in {value for value, _ in told.values()}  # the first of its chain
            walked = []
            while name in told:
                mark = start + 3 * (len(walked) + 1)
                name, place = told[name]
                assert sample.tokens[mark : mark + 3].tolist() == [SEP, *name]
                assert sample.sources[mark + 1 : mark + 3].tolist() == [place + 4, place + 5]
                answers += [mark + 1, mark + 2]
                walked.append(place)
            assert walked == sorted(walked)
            assert hops <= len(walked) <= 3
            assert walked[-1] < length // 2
            places += walked
        assert len(asked) == max(1, length // 192)
        assert sorted(places) == sorted(place for _, place in told.values())  # all are asked
        assert sorted(answers) == np.flatnonzero(sample.answers).tolist()


@pytest.mark.parametrize("length", LENGTHS)
def test_frequent_words_agree_with_a_recount(length, corpus):
    for seed in range(20):
        tokens = draw("frequent", seed, length, corpus).tokens.tolist()
        ranked = Counter(tokens[1:-5]).most_common()
        counts = [count for _, count in ranked[:4]]
        assert tokens[-5:] == [QRY, SEP, *(word for word, _ in ranked[:3])]
        assert counts == sorted(set(counts), reverse=True)  # no ties among the first four
        assert all(word >= 128 for word, _ in ranked)


@pytest.mark.parametrize("length", LENGTHS)
def test_common_words_agree_with_a_recount(length, corpus):
    for seed in range(20):
        tokens = draw("common", seed, length, corpus).tokens.tolist()
        counts = Counter(tokens[1:-6])
        answer = tokens[-4:]
        assert tokens[-6:-4] == [QRY, SEP]
        assert answer == sorted(answer)
        rest = {count for word, count in counts.items() if word not in answer}
        assert len(rest) == 1
        assert min(counts[word] for word in answer) >= 3 * rest.pop()
        assert 8 <= len(counts) - 4 <= 24 or length < 100


def test_the_topic_shifts_in_the_middle_to_what_no_model_learns(corpus):
    prose = read_prose().tobytes()
    for length in (64, 257, 1024):
        sample = draw("topic_shift", 3, length, corpus)
        middle = length // 2
        assert sample.tokens[1:middle].astype(np.uint8).tobytes() in corpus.tobytes()
        assert sample.tokens[middle:].astype(np.uint8).tobytes() in prose
        assert np.flatnonzero(sample.weights == 0).tolist() == [0, middle]
    assert list(STRESS_TASKS) == ["topic_shift"]
    assert not set(STRESS_TASKS) & set(TASKS)
    assert set(EVALUATION_TASKS) == set(STRESS_TASKS) | set(TASKS)
    for split in ("train", "held_out"):
        assert not any("pydoc_data" in path.parts for path in standard_library_files(split))


def test_prose_that_is_missing_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)  # as if it were not installed
    with pytest.raises(FileNotFoundError, match=r"must have pydoc_data\.topics, got none in "):
        read_prose.__wrapped__()


@pytest.mark.parametrize("name", EVALUATION_TASKS)
def test_answers_are_scored_and_all_of_text(name, corpus):
    sample = draw(name, 0, 512, corpus)
    if name in WITHOUT_ANSWERS:
        assert sample.scored.sum() == 512 - (1 if name == "text" else 2)
        assert not sample.scored[0]
    else:
        assert np.array_equal(sample.scored, sample.answers)


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


@pytest.mark.parametrize("name", EVALUATION_TASKS)
def test_too_short_a_sequence_or_corpus_is_refused(name, corpus):
    with pytest.raises(ValueError, match=f"{name}: length must be at least 64, got 63"):
        draw(name, 0, 63, corpus)
    if name in ("text", "needles", "passkey", "tracking", "topic_shift"):
        with pytest.raises(ValueError, match="corpus must have at least 99 bytes, got 10"):
            draw(name, 0, 100, corpus[:10])
