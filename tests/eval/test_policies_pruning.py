"""Policies that prune or sample: each by a case worked out by hand, all by shared rules."""

import math
from dataclasses import replace

import pytest
import torch

from sift_attention.eval.policies import Rows, families
from sift_attention.eval.policies.blasst import BLASST
from sift_attention.eval.policies.corm import CORM
from sift_attention.eval.policies.h2o import H2O
from sift_attention.eval.policies.random_rows import RandomRows
from sift_attention.eval.policies.santa import SANTA
from sift_attention.eval.policies.streaming_llm import StreamingLLM
from sift_attention.eval.policies.top_theta import TopTheta

EVICTING = ["StreamingLLM", "H2O", "CORM"]
NAMES = ["BLASST", "Top-theta", "SANTA", "random rows", *EVICTING]
SETTINGS = [policy for name in NAMES for policy in families()[name]]
NUM_HEADS, NUM_TOKENS, NUM_STEPS = 4, 300, 100


def rows_with(probabilities, num_steps, **changes):
    """Rows whose query heads have given probabilities, lists [G][N][up to N]; short ones end in 0.

    The keys are unit vectors, so that a query is its own row of scores.
    """
    num_tokens = len(probabilities[0])
    p = torch.zeros(len(probabilities), num_tokens, num_tokens)
    for head, queries in enumerate(probabilities):
        for token, values in enumerate(queries):
            p[head, token, : len(values)] = torch.tensor(values)
    k = torch.eye(num_tokens)
    rows = Rows(q=p.log().clamp(min=-80.0), k=k, v=k, num_steps=num_steps, scale=1.0)
    return replace(rows, **changes)


def last_query(*heads):
    """One decode step with given probabilities, lists [G][N], after a prompt that never matters."""
    return rows_with([[[1.0]] * (len(values) - 1) + [values] for values in heads], num_steps=1)


def random_rows(seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(NUM_HEADS, NUM_TOKENS, 16, generator=generator)
    k, v = torch.randn(2, NUM_TOKENS, 16, generator=generator)
    return replace(Rows(q, k, v, NUM_STEPS, scale=0.5), **changes)


def calibrated(policy):
    return policy.calibrate({(0, 0): [random_rows(seed=1), random_rows(seed=2)]})


def test_streaming_llm_reads_four_sinks_and_a_window():
    rows = rows_with([[[1.0] * (token + 1) for token in range(10)]], num_steps=2)
    read = StreamingLLM(share=0.75).read(rows)  # six of a prompt of eight
    expected = torch.zeros(1, 2, 10)
    expected[0, 0, [0, 1, 2, 3, 7, 8]] = 1 / 6
    expected[0, 1, [0, 1, 2, 3, 8, 9]] = 1 / 6
    torch.testing.assert_close(read.weights, expected)
    assert read.v_rows.tolist() == read.k_rows.tolist() == [6, 6]
    torch.testing.assert_close(read.kept_mass, torch.tensor([[6 / 9, 6 / 10]]))


def test_an_evicted_key_leaves_the_denominator_but_a_sink_stays():
    rows = rows_with([[[1.0]] * 5 + [[0.5, 0.1, 0.1, 0.1, 0.1, 0.1]]], num_steps=1)
    rows = replace(rows, sinks=torch.tensor([0.2]).log())
    read = StreamingLLM(share=0.4, num_sinks=0).read(rows)  # two of a prompt of five
    expected = torch.tensor([[[0, 0, 0, 0, 0.1, 0.1]]]) / (0.1 + 0.1 + 0.2)
    torch.testing.assert_close(read.weights, expected)
    torch.testing.assert_close(read.kept_mass, torch.tensor([[0.2 / 1.2]]))


def test_keys_remain_apart_where_an_evicted_key_has_all_the_mass():
    k = torch.eye(6)
    q = torch.tensor([[0.0] * 6] * 5 + [[200.0, 0, 0, 0, 1.0, 2.0]])[None]
    read = StreamingLLM(share=0.4, num_sinks=0).read(Rows(q, k, k, num_steps=1, scale=1.0))
    expected = torch.tensor([0, 0, 0, 0, 1 / (1 + math.e), math.e / (1 + math.e)])
    torch.testing.assert_close(read.weights[0, 0], expected)
    assert read.kept_mass.item() == 0


def test_h2o_keeps_the_key_that_gathered_most_and_the_latest():
    prompt = [[1.0], [0.2, 0.8], [0.2, 0.6, 0.2], [0.1, 0.6, 0.1, 0.2]]  # sums 1.5, 2.0, 0.3, 0.2
    steps = [[0.5, 0.1, 0.1, 0.2, 0.1], [0.1, 0.3, 0.2, 0.1, 0.2, 0.1]]
    read = H2O(share=0.5).read(rows_with([prompt + steps], num_steps=2))
    # The prompt leaves keys 1 and 3. Its step adds 0.25 to key 1, 0.5 to key 3, which stays behind.
    expected = [[0, 0.25, 0, 0.5, 0.25, 0], [0, 3 / 6, 0, 0, 2 / 6, 1 / 6]]
    torch.testing.assert_close(read.weights, torch.tensor([expected]))
    assert read.v_rows.tolist() == read.k_rows.tolist() == [3, 3]
    torch.testing.assert_close(read.kept_mass, torch.tensor([[0.4, 0.6]]))


def test_h2o_adds_up_the_heads_that_share_keys():
    last = [0.25, 0.25, 0.25, 0.25]
    one = [[1.0], [0.8, 0.2], [0.4, 0.3, 0.3], last]  # gathered by keys 0 and 1: 2.2, 0.5
    two = [[1.0], [0.1, 0.9], [0.05, 0.9, 0.05], last]  # 1.15, 1.8
    three = [[1.0], [0.4, 0.6], [0.2, 0.75, 0.05], last]  # 1.6, 1.35

    def survivors(*heads):
        read = H2O(share=0.67).read(rows_with(heads, num_steps=1))  # two of a prompt of three
        return (read.weights[0, 0] > 0.0).tolist()

    assert survivors(one) == survivors(three) == [True, False, True, True]
    assert survivors(two) == survivors(two, three) == [False, True, True, True]
    assert survivors(one, two) == [True, False, True, True]


def test_corm_evicts_what_no_head_found_important_in_its_window():
    prompts = [
        [[1.0], [0.5, 0.5], [0.4, 0.3, 0.3], [0.1, 0.2, 0.3, 0.4]],
        [[1.0], [0.5, 0.5], [0.2, 0.2, 0.6], [0.1, 0.3, 0.2, 0.4]],
    ]
    # Query 2 found keys 0 and 2 important (a third or more), query 3 keys 1, 2 and 3 (a quarter).
    first = [[0.1, 0.1, 0.5, 0.05, 0.25], [0.1, 0.1, 0.1, 0.6, 0.1]]  # 2, 4 and 3: 0 is evicted
    second = [0.5, 0.05, 0.1, 0.1, 0.15, 0.1]  # over those left 0.1 for key 1, which is evicted
    third = [0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]
    heads = [[*prompt, step, second, third] for prompt, step in zip(prompts, first, strict=True)]
    read = CORM(factor=1.0, window=0.5).read(rows_with(heads, num_steps=3))
    second = [0, 0.1, 0.2, 0.2, 0.3, 0.2, 0]
    third = [0, 0, 0.2, 0.2, 0.2, 0.2, 0.2]
    for head in range(2):
        expected = torch.tensor([[*first[head], 0, 0], second, third])
        torch.testing.assert_close(read.weights[head], expected)
    assert read.v_rows.tolist() == read.k_rows.tolist() == [5, 5, 5]
    torch.testing.assert_close(read.kept_mass, torch.tensor([[1.0, 0.5, 0.5]] * 2))


def test_blasst_compares_tiles_with_the_largest_score_so_far():
    relative = [0.1, 0.1, 0.02, 0.01, 1.0, 0.5, 0.25]  # the last tile is half a tile
    read = BLASST(scale=7 * 0.3, tile=2).read(last_query(relative))
    # Tile 0 is the largest when it is visited; tile 1 has a fifth of it, tile 3 a quarter of 2's.
    expected = torch.tensor([0.1, 0.1, 0, 0, 1.0, 0.5, 0]) / 1.7
    torch.testing.assert_close(read.weights, expected[None, None])
    assert (read.v_rows.item(), read.k_rows.item()) == (4, 7)
    torch.testing.assert_close(read.kept_mass, torch.tensor([[1.7 / 1.98]]))


def test_blasst_skips_a_tile_only_if_all_heads_agree():
    read = BLASST(scale=4 * 0.3, tile=2).read(last_query([0.8, 0.1, 0.1, 0], [0.3, 0.2, 0.1, 0.4]))
    torch.testing.assert_close(read.weights[0, 0], torch.tensor([0.8, 0.1, 0.1, 0]))
    torch.testing.assert_close(read.weights[1, 0], torch.tensor([0.3, 0.2, 0.1, 0.4]))
    assert read.v_rows.item() == 4


def test_blasst_reads_less_as_lambda_grows_to_one():
    rows = random_rows()
    num_rows = [BLASST(scale, 16).read(rows).v_rows.sum() for scale in (3.0, 30.0, 300.0, 3000.0)]
    assert num_rows[0] > num_rows[1] > num_rows[2] == num_rows[3] > 0


def test_top_theta_calibrates_the_mean_and_a_tenth_of_the_deviation():
    sample = [last_query([0.4, 0.3, 0.2, 0.1]), last_query([0.7, 0.1, 0.15, 0.05])]
    policy = TopTheta(fraction=0.5).calibrate({(0, 0): sample})
    # Top-2 drops 0.2 and 0.1: the mean is 0.15, the standard deviation 0.05.
    torch.testing.assert_close(policy.thresholds[0, 0], torch.tensor([[0.155]]))
    read = policy.read(last_query([0.5, 0.16, 0.15, 0.19]))
    mean = 0.15 / 4  # every row's share of the dropped mass
    expected = torch.tensor([0.5 + mean, 0.16 + mean, mean, 0.19 + mean])
    torch.testing.assert_close(read.weights, expected[None, None])
    assert (read.v_rows.item(), read.k_rows.item()) == (3, 4)
    torch.testing.assert_close(read.kept_mass, torch.tensor([[0.85]]))


def test_top_theta_uses_the_threshold_of_the_nearest_length_it_saw():
    policy = TopTheta(fraction=0.1, thresholds={(0, 0): torch.tensor([[torch.nan, 0.3, 0.6]])})
    short, long = [0.4, 0.5, 0.1], [0.4, *[0.0] * 498, 0.6001]
    assert policy.read(last_query(short)).v_rows.item() == 2  # more than 0.3
    assert policy.read(last_query(long)).v_rows.item() == 1  # more than 0.6


def test_top_theta_refuses_a_head_that_was_not_calibrated():
    rows = random_rows(layer=3, head=1)
    with pytest.raises(ValueError, match=r"must be calibrated .*, got none for layer 3, head 1"):
        calibrated(TopTheta(fraction=0.1)).read(rows)


def test_santa_draws_at_equal_distances():
    rows = last_query([0.5, 0.25, 0.125, 0.125])
    drawn_last = []
    for seed in range(400):
        read = SANTA(fraction=1.0, seed=seed).read(rows)  # four draws, a quarter apart
        weights = read.weights[0, 0].tolist()
        assert weights in ([0.5, 0.25, 0.25, 0], [0.5, 0.25, 0, 0.25])
        assert (read.v_rows.item(), read.k_rows.item()) == (3, 4)
        torch.testing.assert_close(read.kept_mass, torch.tensor([[0.875]]))
        drawn_last.append(weights[3] > 0)
    assert 160 <= sum(drawn_last) <= 240  # four standard deviations about 200


def test_santa_is_unbiased_and_counts_a_row_of_several_heads_once():
    rows = random_rows(num_steps=1)
    reads = [SANTA(fraction=0.2, seed=seed).read(rows) for seed in range(2000)]
    mean = torch.stack([read.weights for read in reads]).mean(0)
    torch.testing.assert_close(mean, rows.p, atol=0.001, rtol=0.0)
    union = (reads[0].weights > 0).any(0).sum(-1)
    assert reads[0].v_rows.tolist() == union.tolist() < (reads[0].weights > 0).sum((0, 2)).tolist()


def test_santa_repeats_itself_and_only_itself():
    rows = random_rows()
    weights = SANTA(0.1).read(rows).weights
    assert torch.equal(weights, SANTA(0.1).read(random_rows()).weights)
    assert torch.equal(weights[:, -7:], SANTA(0.1).read(random_rows(num_steps=7)).weights)
    for policy, other in (
        (SANTA(0.1, seed=1), rows),
        (SANTA(0.1), random_rows(layer=1)),
        (SANTA(0.1), random_rows(head=1)),
    ):
        assert not torch.equal(weights, policy.read(other).weights)


def test_random_rows_are_the_newest_and_any_other_for_all_heads():
    heads = [[0.4, 0.1, 0.2, 0.3], [0.3, 0.2, 0.1, 0.4]]
    chosen = []
    for seed in range(600):
        read = RandomRows(fraction=0.5, seed=seed).read(last_query(*heads))  # two of four rows
        assert (read.v_rows.item(), read.k_rows.item()) == (2, 4)
        left = (1.0 - read.kept_mass) / 4  # every row's share of the dropped mass
        drawn = read.weights[:, 0] - left > 0.05
        assert torch.equal(drawn[0], drawn[1])
        assert drawn[0, 3]
        expected = left + torch.tensor(heads) * drawn
        torch.testing.assert_close(read.weights[:, 0], expected)
        chosen.append(drawn[0].nonzero()[0].item())
    assert all(150 <= chosen.count(row) <= 250 for row in range(3))  # four standard deviations


def test_random_rows_are_drawn_anew_for_every_step_layer_and_head():
    rows = random_rows(q=torch.ones(1, NUM_TOKENS, 16), k=torch.ones(NUM_TOKENS, 16))
    used = RandomRows(0.1).read(rows).weights[0] > rows.p[0]  # all rows are equally probable
    assert not torch.equal(used[0, :200], used[1, :200])
    weights = RandomRows(0.1).read(random_rows()).weights
    assert torch.equal(weights[:, -7:], RandomRows(0.1).read(random_rows(num_steps=7)).weights)
    for other in (random_rows(layer=1), random_rows(head=1)):
        assert not torch.equal(RandomRows(0.1).read(other).weights, weights)


@pytest.mark.parametrize("name", NAMES)
def test_families_have_few_and_distinct_settings(name):
    settings = families()[name]
    assert 3 <= len({repr(policy) for policy in settings}) == len(settings) <= 5
    assert all(policy.source and not policy.is_oracle for policy in settings)


@pytest.mark.parametrize("sinks", [None, torch.tensor([-1.0, 0.0, 1.0, 2.0])], ids=["", "sinks"])
@pytest.mark.parametrize("policy", SETTINGS, ids=repr)
def test_what_is_read_is_attended_and_counted(policy, sinks):
    rows = random_rows(sinks=sinks)
    read = calibrated(policy).read(rows)
    assert read.weights.shape == rows.p.shape
    assert read.weights[:, ~rows.attended].count_nonzero() == 0
    assert (read.weights >= 0).all()
    assert (read.weights.sum(-1) <= 1 + 1e-5).all()
    assert (read.kept_mass > 0).all()
    assert (read.kept_mass <= rows.p.sum(-1) + 1e-5).all()
    assert (read.v_rows >= 1).all()
    assert (read.v_rows <= rows.lengths).all()
    is_evicting = any(policy in families()[name] for name in EVICTING)
    assert torch.equal(read.k_rows, read.v_rows if is_evicting else rows.lengths.float())


@pytest.mark.parametrize("policy", SETTINGS, ids=repr)
def test_a_step_depends_on_nothing_later(policy):
    rows, others = random_rows(), random_rows(seed=3)
    later = torch.arange(NUM_TOKENS)[:, None] >= 260
    changed = replace(
        rows,
        q=torch.where(later, others.q, rows.q),
        k=torch.where(later, others.k, rows.k),
        v=torch.where(later, others.v, rows.v),
    )
    before, after = (calibrated(policy).read(given) for given in (rows, changed))
    num_earlier = 260 - rows.start
    assert not torch.allclose(before.weights, after.weights)
    for name in ("weights", "v_rows", "k_rows", "kept_mass"):
        one, two = (getattr(read, name) for read in (before, after))
        if name in ("weights", "kept_mass"):
            one, two = one.transpose(0, 1), two.transpose(0, 1)
        torch.testing.assert_close(one[:num_earlier], two[:num_earlier])


@pytest.mark.parametrize(
    "policy",
    [
        StreamingLLM(share=2.0),
        H2O(share=2.0),
        CORM(factor=0.0),
        BLASST(scale=0.0),
        TopTheta(fraction=1.0, thresholds={(0, 0): torch.full((NUM_HEADS, 1), -1.0)}),
        SANTA(fraction=1e6),
    ],
    ids=repr,
)
def test_reading_everything_is_exact(policy):
    rows = random_rows(sinks=torch.tensor([-1.0, 0.0, 1.0, 2.0]), softcap=3.0)
    read = policy.read(rows)
    torch.testing.assert_close(read.weights, rows.p, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(read.kept_mass, rows.p.sum(-1))
    assert torch.equal(read.v_rows, rows.lengths.float())


@pytest.mark.parametrize(
    "policy", [policy for name in EVICTING for policy in families()[name]], ids=repr
)
def test_what_was_evicted_never_returns(policy):
    rows = random_rows()
    used = policy.read(rows).weights[0] > 0.0
    newest = torch.arange(NUM_TOKENS) == rows.lengths[1:, None] - 1
    assert (used[1:] <= used[:-1] | newest).all()
    assert not used[-1].all()
    assert used[-1, -1]
