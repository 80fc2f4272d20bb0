"""Rivals that select keys: a case by hand for each, and what all of them must keep to."""

import math
from dataclasses import replace

import pytest
import torch

from sift_attention.eval.policies import double_sparsity, loki, quest, retro_infer, sparq
from sift_attention.eval.policies.base import Rows
from sift_attention.eval.policies.double_sparsity import DoubleSparsity, quantized
from sift_attention.eval.policies.loki import Loki
from sift_attention.eval.policies.quest import Quest
from sift_attention.eval.policies.retro_infer import RetroInfer, spherical_kmeans
from sift_attention.eval.policies.sparq import SparQ

FAMILIES = {
    name: policies
    for module in (quest, sparq, loki, double_sparsity, retro_infer)
    for name, policies in module.FAMILIES.items()
}
POLICIES = [pytest.param(p, id=repr(p)) for policies in FAMILIES.values() for p in policies]


def rows_of(q, k, num_steps=1, **others):
    """Rows whose prompt queries are 0: q [G, R, D] are those of the decode steps."""
    q, k = torch.tensor(q), torch.tensor(k)
    prompt = q.new_zeros(q.shape[0], len(k) - num_steps, q.shape[2])
    return Rows(torch.cat([prompt, q], 1), k, torch.zeros_like(k), num_steps, scale=1.0, **others)


def random_rows(num_keys=200, num_steps=60, seed=0, **others):
    """Rows of 4 heads with D = 32 and a sharp attention."""
    generator = torch.Generator().manual_seed(seed)
    q = 2.0 * torch.randn(4, num_keys, 32, generator=generator)
    k, v = torch.randn(2, num_keys, 32, generator=generator)
    return Rows(q, k, v, num_steps, scale=32**-0.5, **others)


def calibrated(policy):
    return policy.calibrate({(0, 0): [random_rows(seed=1), random_rows(seed=2)]})


def softmax_at(scores, num_keys):
    """Softmax of scores {key: score} as a row over all keys."""
    row = torch.full((num_keys,), -torch.inf)
    row[list(scores)] = torch.tensor(list(scores.values()))
    return row.softmax(-1)


def test_quest_reads_the_newest_page_and_those_of_largest_bound():
    # Pages of two: bounds 2, 1, 3 for q = 1 and -1, 4, -3 for q = -1; key 6 is the newest page.
    k = [[1.0], [2.0], [-4.0], [1.0], [3.0], [3.0], [0.0]]
    read = Quest(fraction=0.5, page_size=2).read(rows_of([[[1.0]], [[-1.0]]], k))
    expected = [softmax_at({4: 3.0, 5: 3.0, 6: 0.0}, 7), softmax_at({2: 4.0, 3: -1.0, 6: 0.0}, 7)]
    torch.testing.assert_close(read.weights[:, 0], torch.stack(expected))
    assert read.v_rows.tolist() == [5.0]
    assert read.k_rows.tolist() == [2.0 * 3 + 5.0]  # minimum and maximum of three pages
    exact = torch.tensor(k)[:, 0].softmax(0)
    torch.testing.assert_close(read.kept_mass[0, 0], exact[4:].sum())


def test_quest_bounds_a_page_dimension_by_dimension():
    # Page 0 holds (3, -3) and (-3, 3): its bound for q = (1, 1) is 6, though neither key scores
    # more than 0. Page 1 scores 2 with both keys and is left out.
    k = [[3.0, -3.0], [-3.0, 3.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    read = Quest(fraction=0.67, page_size=2).read(rows_of([[[1.0, 1.0]]], k))
    torch.testing.assert_close(read.weights[0, 0], softmax_at({0: 0.0, 1: 0.0, 4: 0.0}, 5))


def test_quest_reads_a_page_that_is_just_complete_as_the_newest():
    k = [[5.0], [5.0], [9.0], [9.0], [0.0], [0.0], [0.0]]
    q = [[[1.0], [1.0], [1.0]]]
    read = Quest(fraction=0.1, page_size=2).read(rows_of(q, k, num_steps=3))
    # Steps of 5, 6 and 7 keys: two, two and three older pages, and at least one of them is read.
    assert read.v_rows.tolist() == [3.0, 4.0, 3.0]
    assert read.k_rows.tolist() == [2.0 * 2 + 3.0, 2.0 * 2 + 4.0, 2.0 * 3 + 3.0]
    assert (read.weights[0, 1] > 0).tolist() == [False, False, True, True, True, True, False]


def test_sparq_scores_two_dimensions_and_gives_the_rest_to_the_mean():
    policy = SparQ(fraction=0.5, dim_fraction=0.5, least_dims=1, window_fraction=0.5)
    k = [[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 8.0, 0.0], [0.0] * 4]
    read = policy.read(rows_of([[[3.0, 1.0, 0.5, -0.5]]], k))
    # Dimensions 0 and 1 hold 4 of |q| = 5. Two of four keys: the newest, and the estimate's best.
    root = math.sqrt(0.8)
    estimate = torch.tensor([3.0 / root, 1.0 / root, 0.0, 0.0]).softmax(0)
    kept = estimate[0] + estimate[3]
    expected = kept * softmax_at({0: 4.0, 3: 0.0}, 4) + (1.0 - kept) / 4
    torch.testing.assert_close(read.weights[0, 0], expected)
    assert read.v_rows.tolist() == [2.0]
    assert read.k_rows.tolist() == [4 * 2 / 4 + 1.0 + 2.0]  # two dimensions, the mean, two keys
    exact = torch.tensor([4.0, 1.0, 4.0, 0.0]).softmax(0)
    torch.testing.assert_close(read.kept_mass[0, 0], exact[0] + exact[3])


def test_sparq_chooses_dimensions_and_keys_for_the_whole_group():
    # |q| sums to (4, 3) over the group, so dimension 0 is read: 2 of 5 of the first head's |q|.
    # The sum of the estimates is largest for key 0, the largest estimate is that of key 1.
    policy = SparQ(fraction=0.67, dim_fraction=0.5, least_dims=1)
    k = [[2.0, 0.0], [-4.0, 0.0], [0.0, 1.0]]
    read = policy.read(rows_of([[[2.0, 3.0]], [[-2.0, 0.0]]], k))
    estimates = torch.tensor([[4.0, -8.0, 0.0], [-4.0, 8.0, 0.0]])
    estimates[0] /= math.sqrt(0.4)
    kept = estimates.softmax(-1)[:, [0, 2]].sum(-1, keepdim=True)
    chosen = torch.stack([softmax_at({0: 4.0, 2: 3.0}, 3), softmax_at({0: -4.0, 2: 0.0}, 3)])
    torch.testing.assert_close(read.weights[:, 0], kept * chosen + (1.0 - kept) / 3)
    assert read.v_rows.tolist() == [2.0]


def test_sparq_takes_a_head_that_is_zero_in_the_dimensions_of_its_group():
    policy = SparQ(fraction=0.67, dim_fraction=0.5, least_dims=1)
    k = [[5.0, 0.0], [0.0, 2.0], [0.0, 0.0]]
    read = policy.read(rows_of([[[2.0, 0.0]], [[0.0, 3.0]]], k))
    expected = 2 / 3 * softmax_at({1: 0.0, 2: 0.0}, 3) + 1 / 3 / 3
    torch.testing.assert_close(read.weights[0, 0], expected)


def test_loki_ranks_keys_along_the_direction_in_which_they_vary():
    # Calibration keys vary along (1, 1) by far, and are centred far from 0.
    t = torch.linspace(-5.0, 5.0, 11)
    k = torch.stack([t + 40.0, t + 0.01 * (-1.0) ** torch.arange(11)], -1)
    seen = Rows(torch.zeros(1, 11, 2), k, k, 1, scale=1.0)
    policy = Loki(fraction=0.5, dim_fraction=0.5, least_dims=1).calibrate({(0, 0): [seen]})
    direction = policy.components[0, 0][:, 0]
    torch.testing.assert_close(
        direction.abs(), torch.full((2,), 0.5**0.5), atol=1e-4, rtol=0, check_dtype=False
    )
    # q = (1, -0.5) scores 1, 2.5, -0.5 and 0; along (1, 1), 0.25 times the sum of the key.
    read = policy.read(rows_of([[[1.0, -0.5]]], [[2.0, 2.0], [1.0, -3.0], [0.0, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(read.weights[0, 0], softmax_at({0: 1.0, 2: -0.5}, 4))
    assert read.v_rows.tolist() == [2.0]
    assert read.k_rows.tolist() == [4 / 2 + 2.0]


def test_loki_lets_every_head_choose_and_reads_the_union():
    identity = torch.eye(2)[:, :1]
    policy = Loki(fraction=0.34, dim_fraction=0.5, least_dims=1, components={(3, 1): identity})
    rows = rows_of([[[1.0, 0.0]], [[-1.0, 9.0]]], [[2.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])
    read = policy.read(replace(rows, layer=3, head=1))
    assert read.weights[:, 0].tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert read.v_rows.tolist() == [2.0]
    assert read.k_rows.tolist() == [3 / 2 + 2.0]


def test_double_sparsity_rounds_labels_to_their_own_range():
    # Steps of (6 - 0) / 3 = 2; a label without range stays as it is.
    label = torch.tensor([[0.0, 1.2, 2.9, 6.0], [7.0, 7.0, 7.0, 7.0]])
    expected = torch.tensor([[0.0, 2.0, 2.0, 6.0], [7.0, 7.0, 7.0, 7.0]])
    torch.testing.assert_close(quantized(label, bits=2), expected)


def test_double_sparsity_ranks_keys_by_heavy_channels_in_two_bits():
    # |q k| is 1, 6, 8, 4 for one token and 1, 0, 3, 4 for the other: 1, 3, 5.5, 4 on average.
    q = torch.tensor([[[1.0, 2.0, 2.0, -4.0], [1.0, 0.0, 1.0, 0.5]]])
    k = torch.tensor([[1.0, 3.0, -4.0, 1.0], [1.0, 1.0, 3.0, 8.0]])
    policy = DoubleSparsity(fraction=0.5).calibrate({(0, 0): [Rows(q, k, k, 1, scale=1.0)]})
    assert sorted(policy.channels[0, 0].tolist()) == [2, 3]
    # The heavy channels score 4, 3, -1 and 0 (two elements are the ends of their own range);
    # with channel 0, the keys score 4, 3, 49 and 0.
    k = [[0.0, 0.0, 4.0, 0.0], [0.0, 0.0, 1.0, 2.0], [50.0, 0.0, -1.0, 0.0], [0.0] * 4]
    read = policy.read(rows_of([[[1.0, 0.0, 1.0, 1.0]]], k))
    torch.testing.assert_close(read.weights[0, 0], softmax_at({0: 4.0, 1: 3.0}, 4))
    assert read.v_rows.tolist() == [2.0]
    # Per key 2 channels of 2 bits, a quarter of an element, and 2 elements, of D = 4.
    assert read.k_rows.tolist() == [4 * (0.25 + 2.0) / 4 + 2.0]
    exact = torch.tensor([4.0, 3.0, 49.0, 0.0]).softmax(0)
    torch.testing.assert_close(read.kept_mass[0, 0], exact[0] + exact[1])


def test_retro_infer_reads_one_cluster_and_estimates_another():
    policy = RetroInfer(0.5, estimated=0.5, cluster_size=2, num_first=1, window=1, segment=9)
    k = [[0.5, 0.0], [2.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    rows = rows_of([[[1.0, 0.0]]], k)
    read = policy.read(rows)
    # Keys 1, 2 and 3, 4 are the clusters of the prompt; both keys of the second score -2.
    scores = {0: 0.5, 1: 2.0, 2: 2.0, 3: -2.0, 4: -2.0, 5: 0.0, 6: 1.0}
    torch.testing.assert_close(read.weights[0, 0], softmax_at(scores, 7))
    assert read.v_rows.tolist() == [5.0]
    # Two centroids, one sum of values, two sizes of one element (D = 2), five keys.
    assert read.k_rows.tolist() == [2.0 + 1.0 + 2 / 2 + 5.0]
    torch.testing.assert_close(read.kept_mass, 1.0 - rows.p[..., [3, 4]].sum(-1))

    unread = replace(policy, estimated=0.0).read(rows)
    del scores[3], scores[4]
    torch.testing.assert_close(unread.weights[0, 0], softmax_at(scores, 7))
    assert unread.k_rows.tolist() == [2.0 + 1 / 2 + 5.0]


def test_retro_infer_clusters_later_keys_as_they_leave_the_window():
    policy = RetroInfer(0.01, estimated=0.0, cluster_size=2, num_first=1, window=1, segment=2)
    k = [[0.5], [2.0], [2.0], [-2.0], [-2.0], [0.0], [0.0], [0.1], [0.1], [0.0]]
    read = policy.read(rows_of([[[1.0]] * 4], k, num_steps=4))
    # 7 ... 10 keys are attended. Keys 1 ... 4 are two clusters of two, 1 and 2 the best. 5 and 6
    # are clustered from 8 keys on, 7 and 8 from 10 on: steady are 0 5 6, 0 7, 0 7 8, 0 9.
    assert read.v_rows.tolist() == [5.0, 4.0, 5.0, 4.0]
    assert read.k_rows.tolist() == [2.0 + 1 + 5, 3.0 + 1 + 4, 3.0 + 1 + 5, 4.0 + 1 + 4]
    assert (read.weights[0, 1] > 0).nonzero().flatten().tolist() == [0, 1, 2, 7]
    assert (read.weights[0, 3] > 0).nonzero().flatten().tolist() == [0, 1, 2, 9]


def test_retro_infer_ranks_clusters_for_the_whole_group():
    # Centroids 2 and -2: softmax .6 and .4 for the first head, .02 and .98 for the second.
    policy = RetroInfer(0.5, estimated=0.0, cluster_size=2, num_first=1, window=1)
    k = [[0.0], [2.0], [2.0], [-2.0], [-2.0], [0.0], [0.0]]
    read = policy.read(rows_of([[[0.1]], [[-1.0]]], k))
    for weights in read.weights[:, 0]:
        assert (weights > 0).nonzero().flatten().tolist() == [0, 3, 4, 5, 6]


def test_retro_infer_does_not_count_clusters_without_keys():
    policy = RetroInfer(0.5, estimated=0.5, cluster_size=2, num_first=1, window=1)
    read = policy.read(rows_of([[[1.0]]], [[1.0]] * 7))
    assert read.v_rows.tolist() == [7.0]
    assert read.k_rows.tolist() == [1.0 + 1.0 + 7.0]  # one centroid, one size


def test_retro_infer_keeps_a_prompt_too_short_for_clusters():
    rows = random_rows(num_keys=15, num_steps=6)
    torch.testing.assert_close(RetroInfer(0.1).read(rows).weights, rows.p)


def test_clusters_gather_keys_by_direction_from_their_mean():
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    lengths = torch.tensor([1.0, 2.0, 3.0, 4.0])
    k = (directions[:, None] * lengths[:, None]).flatten(0, 1) + 7.0
    k = k[torch.tensor([0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11])]
    means, nearest = spherical_kmeans(k, 3)
    assert nearest.view(4, 3).unique(dim=0).shape[0] == 1
    assert len(nearest[:3].unique()) == 3
    torch.testing.assert_close(means[nearest[:3]], 2.5 * directions + 7.0)


@pytest.mark.parametrize("policy", POLICIES)
def test_weights_are_a_softmax_over_attended_keys(policy):
    rows = random_rows(softcap=3.0, sinks=torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    read = calibrated(policy).read(rows)
    assert read.weights.shape == (4, 60, 200)
    assert (read.weights.masked_select(~rows.attended) == 0.0).all()
    assert (read.weights > -1e-7).all()
    assert (read.weights.sum(-1) < 1.0).all()  # the sink has the rest
    assert (read.kept_mass <= rows.p.sum(-1) + 1e-6).all()
    assert (read.kept_mass > 0.0).all()
    assert (read.v_rows >= 1).all()
    assert (read.v_rows < rows.lengths).all()
    assert (read.k_rows > read.v_rows).all()
    without_sinks = calibrated(policy).read(random_rows())
    torch.testing.assert_close(without_sinks.weights.sum(-1), torch.ones(4, 60))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("others", [{}, {"softcap": 3.0, "sinks": torch.tensor([0.0, 1, 2, 3])}])
def test_selecting_everything_is_exact_attention(policy, others):
    rows = random_rows(**others)
    read = calibrated(replace(policy, fraction=1.0)).read(rows)
    torch.testing.assert_close(read.weights, rows.p, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(read.kept_mass, rows.p.sum(-1))
    assert torch.equal(read.v_rows, rows.lengths.float())
    assert (read.k_rows > rows.lengths).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_step_depends_on_itself_and_earlier_tokens_only(policy):
    rows, other = random_rows(), random_rows(seed=5)
    token = 171
    changed = replace(
        rows,
        q=torch.cat([rows.q[:, :token], other.q[:, token:]], 1),
        k=torch.cat([rows.k[:token], 3.0 * other.k[token:]]),
    )
    shorter = replace(rows, q=rows.q[:, :token], k=rows.k[:token], num_steps=token - rows.start)
    whole, *others = (calibrated(policy).read(each) for each in (rows, changed, shorter))
    earlier = token - rows.start
    for read in others:
        torch.testing.assert_close(
            read.weights[:, :earlier, :token], whole.weights[:, :earlier, :token]
        )
        torch.testing.assert_close(read.kept_mass[:, :earlier], whole.kept_mass[:, :earlier])
        assert torch.equal(read.v_rows[:earlier], whole.v_rows[:earlier])
        assert torch.equal(read.k_rows[:earlier], whole.k_rows[:earlier])
    assert not torch.equal(others[0].weights, whole.weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_are_few_and_read_fewer_and_fewer_rows(family):
    rows = random_rows(num_keys=600, num_steps=200)
    shares = [(calibrated(p).read(rows).v_rows / rows.lengths).mean() for p in FAMILIES[family]]
    assert 1 < len(shares) <= 5
    assert shares == sorted(shares, reverse=True)
    assert len(set(FAMILIES[family])) == len(shares)


@pytest.mark.parametrize("policy", [Loki(0.1), DoubleSparsity(0.1)], ids=["Loki", "DoubleSparsity"])
def test_what_was_not_calibrated_refuses(policy):
    rows = replace(random_rows(), layer=2, head=1)
    message = r"\.read: policy must be calibrated for layer 2, head 1"
    with pytest.raises(ValueError, match=type(policy).__name__ + message):
        calibrated(policy).read(rows)
    assert repr(calibrated(policy)) == repr(policy)
