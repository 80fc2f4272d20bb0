"""This project's policies, the paper's and the oracles: cases by hand, the reference, numpy."""

import math

import numpy as np
import pytest
import torch

from sift_attention import PowerLaw, SiftConfig, reference
from sift_attention.calibration import sample_grid
from sift_attention.eval.policies.base import Rows
from sift_attention.eval.policies.oracles import TopK, TopP, TrueQuantile
from sift_attention.eval.policies.paper import Paper, fit_log_log
from sift_attention.eval.policies.prompt_fitted import PromptFitted
from sift_attention.eval.policies.sift import FAMILIES, Sift
from sift_attention.eval.policies.values_from_keys import ValuesFromKeys
from sift_attention.eval.policies.yalis_controller import YalisController, update_interval

pytest.importorskip("transformers")


def rows_with(*probabilities, v=None, num_steps=1):
    """One step of G heads with the given probabilities over the same keys.

    The keys are unit vectors, so that the query is the log of the probabilities.
    """
    p = torch.tensor(probabilities, dtype=torch.float32)
    num_keys = p.shape[1]
    q = torch.zeros(len(p), num_keys, num_keys)
    q[:, num_keys - num_steps :] = p.log()[:, None]
    v = torch.eye(num_keys) if v is None else v
    return Rows(q, torch.eye(num_keys), v, num_steps, scale=1.0)


def random_rows(num_tokens=200, num_steps=80, group_size=4, head_dim=32, scale=0.4, **others):
    q = torch.randn(group_size, num_tokens, head_dim)
    k, v = torch.randn(num_tokens, head_dim), torch.randn(num_tokens, head_dim)
    return Rows(q, k, v, num_steps, scale, **others)


def assert_weights(read, *expected):
    torch.testing.assert_close(read.weights[:, 0], torch.tensor(expected))


def decode_by_reference(rows, laws, residual):
    """What `reference.decode` makes of every step, as a batch of R: output, rows, kept mass."""
    num_steps, (group_size, _, head_dim) = rows.num_steps, rows.q.shape
    k = rows.k.expand(num_steps, 1, -1, -1).double()
    v = rows.v.expand(num_steps, 1, -1, -1).double()
    v_sum = (rows.attended.double() @ rows.v.double())[:, None]
    out, stats = reference.decode(
        rows.q[:, rows.start :].transpose(0, 1).double(),
        k,
        v,
        laws,
        scale=rows.scale,
        seq_lens=rows.lengths,
        v_sum=v_sum if residual == "mean" else None,
        residual=residual,
        softcap=rows.softcap,
        sinks=rows.sinks,
        return_stats=True,
    )
    assert out.shape == (num_steps, group_size, head_dim)
    return out.transpose(0, 1).float(), stats.num_loaded[:, 0], stats.kept_mass.T.float()


def assert_same_as_reference(read, rows, law, residual):
    out, num_loaded, kept_mass = decode_by_reference(rows, law, residual)
    torch.testing.assert_close(read.v_rows, num_loaded.float(), rtol=0, atol=0)
    torch.testing.assert_close(read.kept_mass, kept_mass, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(read.weights @ rows.v, out, rtol=1e-4, atol=1e-5)


# Sift


def test_sift_shares_rows_and_spreads_what_it_drops():
    rows = rows_with([0.6, 0.2, 0.1, 0.1], [0.1, 0.3, 0.5, 0.1])
    read = Sift(1.6).read(rows)  # theta = 0.4: keys 0 and 2
    assert read.v_rows.tolist() == [2.0]
    assert read.k_rows.tolist() == [4.0]
    torch.testing.assert_close(read.kept_mass[:, 0], torch.tensor([0.7, 0.6]))
    assert_weights(read, [0.675, 0.075, 0.175, 0.075], [0.2, 0.1, 0.6, 0.1])


@pytest.mark.parametrize(
    ("residual", "expected"),
    [
        ("none", [0.6, 0.0, 0.1, 0.0]),
        ("renormalize", [6 / 7, 0.0, 1 / 7, 0.0]),
        ("mean of dropped", [0.6, 0.15, 0.1, 0.15]),
    ],
)
def test_sift_with_other_residuals(residual, expected):
    rows = rows_with([0.6, 0.2, 0.1, 0.1], [0.1, 0.3, 0.5, 0.1])
    read = Sift(1.6, residual).read(rows)
    torch.testing.assert_close(read.weights[0, 0], torch.tensor(expected))


def test_sift_with_rows_of_each_head_reads_the_same_rows_and_uses_fewer():
    rows = rows_with([0.6, 0.2, 0.1, 0.1], [0.1, 0.3, 0.5, 0.1])
    read = Sift(1.6, "none", group="own").read(rows)
    assert read.v_rows.tolist() == [2.0]
    assert_weights(read, [0.6, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.0])


def test_sift_by_the_mean_of_the_heads():
    rows = rows_with([0.6, 0.2, 0.1, 0.1], [0.1, 0.3, 0.5, 0.1])  # means .35, .25, .3, .1
    read = Sift(1.1, "none", group="mean").read(rows)  # theta = 0.275
    assert_weights(read, [0.6, 0.0, 0.1, 0.0], [0.1, 0.0, 0.5, 0.0])


def test_sift_loads_one_row_for_the_group_where_nothing_passes():
    rows = rows_with([0.3, 0.3, 0.2, 0.2], [0.2, 0.2, 0.5, 0.1])
    read = Sift(8.0, "none").read(rows)
    assert_weights(read, [0.0, 0.0, 0.2, 0.0], [0.0, 0.0, 0.5, 0.0])


@pytest.mark.parametrize("residual", ["mean", "renormalize", "none"])
@pytest.mark.parametrize("c", [0.5, 2.0, 500.0])
def test_sift_equals_the_reference(residual, c):
    rows = random_rows()
    assert_same_as_reference(Sift(c, residual).read(rows), rows, PowerLaw.uniform(c), residual)


@pytest.mark.parametrize("residual", ["mean", "renormalize", "none"])
def test_sift_equals_the_reference_with_softcap_and_sinks(residual):
    rows = random_rows(softcap=3.0, sinks=torch.tensor([0.0, 2.0, 5.0, -1.0]))
    read = Sift(2.0, residual).read(rows)
    assert_same_as_reference(read, rows, PowerLaw.uniform(2.0), residual)


def test_sift_names_the_configuration_that_the_operator_takes():
    assert Sift(2.0).sift_config() == SiftConfig()
    assert Sift(4.0, "none").sift_config() == SiftConfig(c=4.0, residual="none")
    assert Sift(2.0, "mean of dropped").sift_config() is None
    assert Sift(2.0, group="own").sift_config() is None
    assert Sift(2.0, group="mean").sift_config() is None


def test_the_default_is_among_the_settings_of_the_first_family():
    name, settings = next(iter(FAMILIES.items()))
    assert name == "sift"
    assert SiftConfig() in [policy.sift_config() for policy in settings]


# Prompt-fitted


@pytest.mark.parametrize("slope", [1.0, "fit"])
@pytest.mark.parametrize("residual", ["mean", "renormalize"])
def test_prompt_fitted_equals_the_reference(slope, residual):
    rows = random_rows(num_tokens=300, num_steps=100)
    grid = torch.tensor([[length for length in sample_grid(32) if length <= 200]])
    samples = reference.score_quantile(
        rows.q[None, :, grid[0] - 1], rows.k[None, None], grid, 0.9, scale=rows.scale
    )
    law, ok = reference.fit_power_law(grid, samples, None if slope == "fit" else slope)
    assert ok.all()
    read = PromptFitted(0.9, slope, residual).read(rows)
    assert_same_as_reference(read, rows, law, residual)
    assert read.v_rows.max() < 200  # of 201 to 300


def test_prompt_fitted_stays_exact_without_a_fit():
    rows = random_rows(num_tokens=60, num_steps=20)  # 32 to 40 keys span too little
    read = PromptFitted(0.9, "fit").read(rows)
    torch.testing.assert_close(read.weights, rows.p)
    assert torch.equal(read.v_rows, rows.lengths.float())


# Values from keys


def test_values_that_are_linear_in_the_keys_are_guessed():
    rows = random_rows(scale=0.1)
    linear = Rows(rows.q, rows.k, rows.k @ torch.randn(32, 32) + 3.0, 80, 0.1)
    read = ValuesFromKeys(c=3.0, rank=32, ridge=1e-6).read(linear)
    exact = linear.p @ linear.v
    assert read.kept_mass.mean() < 0.3
    torch.testing.assert_close(read.weights @ linear.v, exact, rtol=1e-3, atol=1e-3)
    assert (Sift(3.0).read(linear).weights @ linear.v - exact).abs().max() > 0.1


def test_values_from_keys_with_a_heavy_penalty_is_the_mean():
    rows = random_rows()
    read, mean = ValuesFromKeys(2.0, rank=3, ridge=1e9).read(rows), Sift(2.0).read(rows)
    torch.testing.assert_close(read.weights, mean.weights, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(read.kept_mass, mean.kept_mass)
    torch.testing.assert_close(read.v_rows, mean.v_rows + 6)


def test_the_regression_of_values_on_keys_is_that_of_ridge_and_a_truncated_svd():
    rows = random_rows(scale=0.1)
    policy = ValuesFromKeys(c=1.2, rank=2, ridge=0.5)
    k = rows.k[:120] - rows.k[:120].mean(0)
    v = rows.v[:120] - rows.v[:120].mean(0)
    penalty = 0.5 * (k * k).mean()
    extended = torch.cat([k, (120 * penalty).sqrt() * torch.eye(32)])  # ridge as least squares
    full = torch.linalg.lstsq(extended, torch.cat([v, torch.zeros(32, 32)])).solution
    fitted = torch.linalg.svd(extended @ full, full_matrices=False)
    expected = full @ fitted.Vh[:2].T @ fitted.Vh[:2]

    left = rows.p * (rows.p <= 1.2 / rows.lengths[:, None]).all(0)
    offset = left @ rows.k - left.sum(-1, keepdim=True) * (
        rows.attended.float() @ rows.k / rows.lengths[:, None]
    )
    guessed = policy.read(rows).weights @ rows.v - Sift(1.2).read(rows).weights @ rows.v
    torch.testing.assert_close(guessed, offset @ expected, rtol=1e-3, atol=1e-5)


# Oracles


def test_top_k_rounds_up_and_shares_rows():
    rows = rows_with([0.4, 0.3, 0.2, 0.05, 0.05], [0.05, 0.1, 0.4, 0.3, 0.15])
    read = TopK(0.3).read(rows)  # 2 of 5: keys 0, 1 and 2, 3
    assert read.v_rows.tolist() == [4.0]
    torch.testing.assert_close(read.kept_mass[:, 0], torch.tensor([0.95, 0.85]))
    assert TopK(0.2).read(rows).v_rows.tolist() == [2.0]


def test_top_p_leaves_out_at_most_its_share():
    rows = rows_with([0.4, 0.3, 0.2, 0.06, 0.04])
    assert TopP(0.05).read(rows).v_rows.tolist() == [4.0]
    assert TopP(0.11).read(rows).v_rows.tolist() == [3.0]
    assert TopP(0.29).read(rows).v_rows.tolist() == [3.0]
    assert TopP(0.31).read(rows).v_rows.tolist() == [2.0]
    assert TopP(0.9999).read(rows).v_rows.tolist() == [1.0]
    torch.testing.assert_close(
        TopP(0.31).read(rows).weights[0, 0], torch.tensor([0.46, 0.36, 0.06, 0.06, 0.06])
    )


def test_true_quantile_is_that_of_the_operator():
    rows = random_rows()
    theta = reference.score_quantile(
        rows.q[None, :, rows.start :], rows.k[None, None], rows.lengths[None], 0.9, scale=rows.scale
    )[0]
    expected = (rows.p > theta[..., None] * (1 + 1e-5)).any(0).sum(-1).float()
    read = TrueQuantile(0.9).read(rows)
    assert torch.equal(read.v_rows, expected)


def test_true_quantile_by_hand():
    rows = rows_with([0.4, 0.3, 0.15, 0.1, 0.05])  # entry floor(0.5 * 4) = 2 is 0.15
    assert TrueQuantile(0.5).read(rows).v_rows.tolist() == [2.0]
    assert TrueQuantile(0.49).read(rows).v_rows.tolist() == [3.0]


# The paper


def test_the_fit_is_numpys():
    x = torch.arange(1.0, 17.0)
    y = torch.rand(4, 16) + 0.01
    log_a, b = fit_log_log(x, y)
    slope, intercept = np.polyfit(x.log().numpy(), y.log().numpy().T, 1)
    np.testing.assert_allclose(b.numpy(), slope, rtol=1e-4)
    np.testing.assert_allclose(log_a.numpy(), intercept, rtol=1e-4)


@pytest.mark.parametrize("over", ["step", "length"])
def test_the_papers_procedure(over):
    rows = random_rows(group_size=2)
    read = Paper(0.8, warmup_steps=10, over=over).read(rows)

    p = rows.p.numpy()
    x = np.arange(1, 81) + (120 if over == "length" else 0)
    expected = p.copy()
    for head in range(2):
        quantiles = [np.quantile(p[head, r, : 121 + r], 0.8) for r in range(10)]
        b, log_a = np.polyfit(np.log(x[:10]), np.log(quantiles), 1)
        for r in range(10, 80):
            expected[head, r][p[head, r] < math.exp(log_a) * x[r] ** b] = 0.0
    np.testing.assert_allclose(read.weights.numpy(), expected, rtol=1e-6)
    np.testing.assert_array_equal(read.v_rows.numpy(), (expected > 0).any(0).sum(-1))
    assert torch.equal(read.v_rows[:10], rows.lengths[:10].float())
    assert (read.v_rows[10:] < rows.lengths[10:]).any()


def test_the_papers_heads_keep_their_own_rows_and_may_lose_all():
    rows = rows_with([0.5, 0.2, 0.1, 0.1, 0.1], num_steps=4)  # steps 2 to 5, keys beyond masked
    # The quantile 1 of the 2 warm-up steps is 5/7 and 5/8: a falling law, below which 5/9 and 1/2
    # stay: exp(log_a) x^b = 0.578 at 3 and 0.546 at 4.
    read = Paper(1.0, warmup_steps=2).read(rows)
    assert read.v_rows.tolist() == [2.0, 3.0, 0.0, 0.0]
    assert read.kept_mass[0].tolist() == pytest.approx([1.0, 1.0, 0.0, 0.0])


# The authors' later controller


def test_the_controllers_updates_double_their_distance():
    lengths = [1, 127, 128, 255, 256, 512, 1023, 32768]
    assert [update_interval(length) for length in lengths] == [4, 4, 8, 8, 16, 32, 32, 2048]


@pytest.mark.parametrize(("num_tokens", "num_steps"), [(40, 37), (300, 181)])
def test_the_controller_step_by_step(num_tokens, num_steps):
    rows = random_rows(num_tokens, num_steps, group_size=2)
    read = YalisController(0.9).read(rows)
    p, start = rows.p.double().numpy(), rows.start
    for head in range(2):
        log_a, b, kept, total, rates = 0.0, -1.0, 0, 0, [0.15, 0.015]
        for step in range(num_steps):
            length = start + step + 1
            keep = p[head, step, :length] >= math.exp(log_a + b * math.log(length))
            keep[-1] = True
            expected = np.where(keep, p[head, step, :length], 0.0)
            np.testing.assert_allclose(read.weights[head, step, :length].numpy(), expected, 1e-5)
            kept, total = kept + keep.sum(), total + length
            if length % (4 if length < 128 else 8 * 2 ** int(math.log2(length // 128))) == 0:
                excess = kept / total - 0.1
                log_a += rates[0] * excess
                b += rates[1] * excess
                if length >= 128:
                    rates = [rates[0] * 0.98, rates[1] * 0.995]


def test_the_controller_always_keeps_the_newest_key():
    rows = rows_with([0.9, 0.06, 0.03, 0.01])
    read = YalisController(0.5).read(rows)  # theta = 1/4
    assert_weights(read, [0.9, 0.0, 0.0, 0.01])
    assert read.v_rows.tolist() == [2.0]
