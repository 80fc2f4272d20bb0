"""The tasks in English: read back from their text, they hold what the tokens claim."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sift_attention.eval.corpus import read_prose, read_standard_library
from sift_attention.eval.tasks import EVALUATION_TASKS

transformers = pytest.importorskip("transformers")
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

from sift_attention.eval.dialects import tasks_of  # noqa: E402
from sift_attention.eval.pieces import Draft, Piece, Pieces  # noqa: E402
from sift_attention.eval.prompts import PROMPTS  # noqa: E402

LENGTHS = (256, 257, 700, 2048)
WITHOUT_ANSWERS = ("text", "topic_shift")
BYTE_MODEL = Path(__file__).parents[2] / "examples" / "model"


def byte_level_bpe(vocab_size):
    """A tokenizer of the kind of GPT-2 and Llama 3, trained on the beginning of the prose."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([read_prose().tobytes().decode()[:200_000]], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_bpe(1000)


@pytest.fixture(scope="module")
def pieces(tokenizer):
    return Pieces(tokenizer)


@pytest.fixture
def read(tokenizer):
    """Text of tokens."""
    return lambda tokens: tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


def draw(name, seed, length, pieces):
    return PROMPTS[name](np.random.default_rng(seed), length, pieces)


def answers_of(sample):
    """The runs of answer tokens, in order, as pairs of their first position and their tokens."""
    positions = np.flatnonzero(sample.answers)
    runs = np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)
    return [(int(run[0]), sample.tokens[run]) for run in runs]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", PROMPTS)
def test_samples_are_well_formed_and_repeatable(name, length, pieces):
    for seed in range(10):
        sample, again = draw(name, seed, length, pieces), draw(name, seed, length, pieces)
        assert np.array_equal(sample.tokens, again.tokens)
        assert sample.tokens.dtype == np.int64
        assert sample.weights.dtype == np.float32
        assert len(sample.tokens) == len(sample.weights) == length
        assert len(sample.answers) == len(sample.sources) == length
        assert np.flatnonzero(sample.tokens == pieces.start[0]).tolist() == [0]
        assert sample.answers.any() == (name not in WITHOUT_ANSWERS)
        if name in WITHOUT_ANSWERS:
            unpredictable = [0] if name == "text" else [0, length // 2]
            assert np.flatnonzero(~sample.scored).tolist() == unpredictable
        else:
            assert np.array_equal(sample.weights > 0, sample.answers)
    assert not np.array_equal(sample.tokens, draw(name, 99, length, pieces).tokens)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", PROMPTS)
def test_sources_hold_the_answers_and_come_first(name, length, pieces):
    for seed in range(10):
        sample = draw(name, seed, length, pieces)
        positions = np.flatnonzero(sample.sources >= 0)
        assert (sample.sources[positions] < positions).all()
        assert np.array_equal(sample.tokens[sample.sources[positions]], sample.tokens[positions])
        counted = name in ("frequent", "common")
        assert np.array_equal(sample.sources >= 0, sample.answers & (not counted))
        # Where the second half is decoded, every answer is; pairs and copies begin before.
        if name not in ("repeats", "mqar", *WITHOUT_ANSWERS):
            assert np.flatnonzero(sample.answers)[0] > length // 2


@pytest.mark.parametrize("length", LENGTHS)
def test_every_needle_is_asked_once(length, pieces, read):
    pattern = r"\nThe code of the ([a-z]+ [a-z]+) is( \d{5})\.\n"
    for seed in range(10):
        sample = draw("needles", seed, length, pieces)
        told = re.findall(pattern, read(sample.tokens[: length // 2]))
        asked = re.findall(pattern, read(sample.tokens[length // 2 :]))
        assert 1 <= len(told) <= length // 128
        assert len(dict(told)) == len(told)
        assert sorted(asked) == sorted(told)
        assert [read(tokens) for _, tokens in answers_of(sample)] == [code for _, code in asked]
    assert len(told) == length // 128 or length < 700


@pytest.mark.parametrize("length", LENGTHS)
def test_the_passkey_is_asked_at_the_end(length, pieces, read):
    depths = []
    for seed in range(60):
        sample = draw("passkey", seed, length, pieces)
        (told,) = re.findall(r"\nThe pass key is( \d{5})\. Remember it\.\n", read(sample.tokens))
        assert read(sample.tokens).endswith(f"\nThe pass key is{told}")
        ((start, tokens),) = answers_of(sample)
        assert read(tokens) == told
        assert start + len(tokens) == length
        depths.append(sample.sources[start] / length)
    head = len(pieces.tokens("Between the lines stands a pass key."))
    assert min(depths) < 0.1 + 2 * head / length
    assert 0.7 < max(depths) < 0.93


@pytest.mark.parametrize("length", LENGTHS)
def test_chains_of_variables_can_be_walked(length, pieces, read):
    for seed in range(10):
        sample = draw("tracking", seed, length, pieces)
        early, late = read(sample.tokens[: length // 2]), read(sample.tokens[length // 2 :])
        told = re.findall(r"\nlet( [a-z]{6}) =( [a-z]{6})\n", early)
        following = dict(told)
        assert len(following) == len(told)
        answers = []
        traces = re.findall(r"\ntrace((?: [a-z]{6} =)+ [a-z]{6})\n", late)
        for trace in traces:
            first, *walked = trace.split(" =")
            assert first not in following.values()
            for name in walked:
                assert following.pop(first) == name
                first = name
            answers += walked
            places = [told.index(hop) for hop in zip(trace.split(" ="), walked, strict=False)]
            assert places == sorted(places)
        assert not following  # all chains were walked to their ends
        assert 1 <= len(traces) <= max(1, length // 384)
        assert [read(tokens) for _, tokens in answers_of(sample)] == answers


@pytest.mark.parametrize("length", LENGTHS)
def test_mqar_asks_for_its_pairs(length, pieces, read):
    for seed in range(10):
        sample = draw("mqar", seed, length, pieces)
        list_of_pairs, questions = read(sample.tokens).split("\n\n")
        told = dict(line.split(" ->") for line in list_of_pairs.split("\n")[1:])
        assert 4 <= len(told) == list_of_pairs.count("->") <= 64
        lines = [line.split(" ->") for line in questions.split("\n")[1:-1]]  # the last may be cut
        assert all(told[key] == value for key, value in lines)
        for first in range(0, len(lines) - len(told) + 1, len(told)):
            assert {key for key, _ in lines[first : first + len(told)]} == set(told)
        values = [read(tokens) for _, tokens in answers_of(sample)]
        assert values[: len(lines)] == [value for _, value in lines]
        assert len(values) - len(lines) in (0, 1)
        assert len(lines) > 0
        assert len(pieces.tokens(list_of_pairs)) <= length // 2 + 1


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["frequent", "common"])
def test_counted_words_agree_with_a_recount(name, length, pieces, read):
    for seed in range(10):
        sample = draw(name, seed, length, pieces)
        _, stream = read(sample.tokens).split("\nA list of words, which will be counted:")
        stream, question = stream.split("\nThe ")
        counts = Counter(stream.split())
        answer = question.split(":")[1].split()
        (run,) = answers_of(sample)
        assert read(run[1]).split() == answer
        assert run[0] + len(run[1]) == length
        if name == "frequent":
            ranked = counts.most_common(4)
            assert answer == [word for word, _ in ranked[:3]]
            assert [count for _, count in ranked] == sorted({n for _, n in ranked}, reverse=True)
        else:
            rest = {count for word, count in counts.items() if word not in answer}
            assert len(rest) == 1
            assert min(counts[word] for word in answer) >= 3 * rest.pop()
            assert answer == sorted(answer)
            assert len(answer) == 4


@pytest.mark.parametrize("length", LENGTHS)
def test_repeats_come_one_period_later(length, pieces):
    for seed in range(10):
        sample = draw("repeats", seed, length, pieces)
        answers = np.flatnonzero(sample.answers)
        period = int(answers[0] - sample.sources[answers[0]])
        assert 8 <= period <= length // 2
        assert np.array_equal(sample.tokens[1 + period :], sample.tokens[1:-period])
        assert answers.tolist() == list(range(1 + period + 2, length))


def test_text_is_source_and_the_topic_shifts_to_prose(pieces):
    for name, middle in (("text", 700), ("topic_shift", 350)):
        tokens = draw(name, 5, 700, pieces).tokens
        assert tokens[1:middle].tobytes() in pieces.source.tobytes()
        assert tokens[middle:].tobytes() in pieces.prose.tobytes()


def test_what_does_not_fit_is_refused(pieces):
    for name in PROMPTS:
        with pytest.raises(ValueError, match=f"{name}: length must be at least 256, got 255"):
            draw(name, 0, 255, pieces)
    too_many = len(pieces.source) + 1
    with pytest.raises(ValueError, match=rf"text: length must be at most the \d+ .*{too_many}"):
        draw("text", 0, too_many, pieces)
    spelled = Pieces(byte_level_bpe(257))  # every byte is a token
    for name in ("tracking", "frequent", "common"):
        with pytest.raises(ValueError, match=f"{name}: length must be larger .* got 256"):
            draw(name, 1, 256, spelled)
        assert len(draw(name, 1, 1024, spelled).tokens) == 1024


def test_a_fact_is_told_once_and_then_asked(pieces, read):
    draft = Draft("test", np.random.default_rng(0), 256, pieces)
    told = Piece(" 12345", fact="number")
    draft.write([Piece("\nOne:"), told, Piece("\nTwo:"), told._replace(asked=True)])
    draft.write([Piece("\nThree:"), Piece(" untold", fact="else", asked=True)])
    draft.fill(256 - len(draft))
    sample = draft.sample()
    (first, number), (_, untold) = answers_of(sample)
    assert read(sample.tokens).startswith("<s>\nOne: 12345\nTwo: 12345\nThree: untold")
    assert (read(number), read(untold)) == (" 12345", " untold")
    source = 1 + len(pieces.tokens("\nOne:"))
    size = len(number)
    assert sample.sources[first : first + size].tolist() == [*range(source, source + size)]
    assert (sample.sources >= 0).sum() == size


def test_pieces_carry_no_space_of_the_tokenizer():
    """As Llama 2's: a space before every text, kept apart from what follows."""
    characters = ["▁", "\n", *"0123456789abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {character: index for index, character in enumerate(characters)}
    model = models.BPE(vocab={**vocabulary, "▁a": 38, "▁\n": 39}, merges=[("▁", "a"), ("▁", "\n")])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    pieces = Pieces(transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert tokenizer.encode("7").ids == [0, 9]
    assert pieces.tokens("7") == [9]
    assert pieces.tokens(" a") == [38]
    assert pieces.tokens("\na") == [1, 12]
    assert pieces.start == []  # no token begins sequences


def test_a_folder_with_a_tokenizer_gets_prompts(tmp_path, tokenizer, pieces):
    tokenizer.save_pretrained(tmp_path)
    tasks = tasks_of(tmp_path)
    assert list(tasks) == list(EVALUATION_TASKS) == list(PROMPTS)
    sample = tasks["needles"](np.random.default_rng(3), 512)
    assert np.array_equal(sample.tokens, draw("needles", 3, 512, pieces).tokens)


def test_a_byte_model_gets_bytes_of_the_split():
    for split in ("held_out", "train"):
        corpus = read_standard_library(split)
        tasks = tasks_of(BYTE_MODEL, split)
        assert list(tasks) == list(EVALUATION_TASKS)
        for name, task in EVALUATION_TASKS.items():
            sample = tasks[name](np.random.default_rng(3), 512)
            expected = task(np.random.default_rng(3), 512, corpus)
            assert np.array_equal(sample.tokens, expected.tokens)


def test_a_model_of_other_tokens_without_a_tokenizer_is_refused(tmp_path):
    transformers.LlamaConfig(vocab_size=1000).save_pretrained(tmp_path)
    expected = "tasks_of: model_folder must have a tokenizer or a vocab_size of 260, got 1000 in "
    with pytest.raises(ValueError, match=expected):
        tasks_of(tmp_path)
