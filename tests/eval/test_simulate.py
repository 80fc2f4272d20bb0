"""One simulated forward decodes as the operator does step by step."""

import pytest
import torch

pytest.importorskip("transformers")
import transformers
from tiny_decoders import OPTIONS, build, text_samples, tokens_of

from sift_attention import SiftConfig
from sift_attention.eval import simulated_attention
from sift_attention.eval.policies.exact import Exact
from sift_attention.eval.policies.sift import Sift
from sift_attention.eval.simulate import Simulation, exact_logits, observe, simulate
from sift_attention.eval.stepwise import stepwise

LENGTH, STEPS = 96, 40
SIFTED = SiftConfig(c=1.5, min_keys=0)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=OPTIONS)
def model(request):
    return build(request.param)


@pytest.fixture
def tokens():
    return tokens_of(text_samples(2, LENGTH))


def test_simulated_steps_equal_those_of_the_operator(model, tokens):
    simulated = simulate(model, tokens, STEPS, Sift(1.5))
    stepped = stepwise(model, tokens, STEPS, SIFTED)
    torch.testing.assert_close(simulated.logits, stepped.logits, rtol=1e-3, atol=1e-3)
    assert simulated.num_keys == stepped.num_keys == range(LENGTH - STEPS + 1, LENGTH + 1)
    full_layers = [1] if "layer_types" in OPTIONS[type(model.config).__name__] else [0, 1]
    assert list(simulated.layers) == list(stepped.layers) == full_layers
    for layer, reads in simulated.layers.items():
        other = stepped.layers[layer]
        assert reads.v_rows.shape == (2, STEPS, 2)
        assert reads.dropped_mass.shape == (2, STEPS, 4)
        # A probability at the threshold may fall on either side of it.
        assert (reads.v_rows != other.v_rows).double().mean() < 0.02
        assert reads.v_rows.mean() < 0.7 * other.k_rows.mean()
        assert torch.equal(reads.k_rows, other.k_rows)
        torch.testing.assert_close(reads.dropped_mass, other.dropped_mass, rtol=0, atol=0.02)


def test_exact_steps_equal_the_model_and_dropping_changes_it(model, tokens):
    exact = exact_logits(model, tokens, STEPS)
    simulated = simulate(model, tokens, STEPS, Exact())
    torch.testing.assert_close(simulated.logits, exact, rtol=1e-3, atol=1e-3)
    for reads in simulated.layers.values():
        assert torch.equal(reads.v_rows, reads.k_rows)
        assert reads.dropped_mass.max() < 1e-5
    sifted = simulate(model, tokens, STEPS, Sift(1.5)).logits
    assert (sifted - exact).abs().max() > 0.05


@pytest.mark.parametrize("most_shared", [None, 0])
def test_one_reading_of_the_prompt_serves_any_number_of_policies(
    model, tokens, most_shared, monkeypatch
):
    if most_shared is not None:
        monkeypatch.setattr(simulated_attention, "_MOST_SHARED_BYTES", most_shared)
    seen = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _, arguments, __: seen.append(arguments[0].shape[1])
    )
    simulation = Simulation(model, tokens, STEPS)
    found = [simulation.decode(policy) for policy in (Sift(4.0), Exact(), Sift(1.5))]
    hook.remove()
    assert seen == [LENGTH - STEPS, STEPS, STEPS, STEPS]
    for decoded, policy in zip(found, (Sift(4.0), Exact(), Sift(1.5)), strict=True):
        alone = simulate(model, tokens, STEPS, policy)
        assert torch.equal(decoded.logits, alone.logits)
        for layer, reads in decoded.layers.items():
            assert torch.equal(reads.v_rows, alone.layers[layer].v_rows)
            assert torch.equal(reads.dropped_mass, alone.layers[layer].dropped_mass)


def test_errors_of_a_step_reach_later_steps_but_not_earlier_ones(tokens):
    model = build()
    all_steps = simulate(model, tokens, STEPS, Sift(4.0)).logits
    last_step = simulate(model, tokens, 1, Sift(4.0)).logits
    assert (all_steps[:, -1:] - last_step).abs().max() > 1e-3
    shorter = simulate(model, tokens[:, :-10], STEPS - 10, Sift(4.0)).logits
    torch.testing.assert_close(all_steps[:, :-10], shorter, rtol=1e-3, atol=1e-3)


def test_observed_rows_hold_the_probabilities_of_eager_attention(tokens):
    model = build()
    observed = observe(model, tokens, STEPS)
    assert sorted(observed) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    model.set_attn_implementation("eager")
    attentions = model(input_ids=tokens, output_attentions=True).attentions
    for (layer, head), sequences in observed.items():
        assert len(sequences) == 2
        for sequence, rows in enumerate(sequences):
            expected = attentions[layer][sequence, 2 * head : 2 * head + 2, -STEPS:]
            torch.testing.assert_close(rows.p, expected, rtol=1e-3, atol=1e-5)


def test_the_attention_of_the_model_is_restored_also_after_a_failure(tokens):
    class Failing(Exact):
        def read(self, rows):
            raise KeyError("on purpose")

    model = build()
    for policy in (Exact(), Failing()):
        try:
            simulate(model, tokens, STEPS, policy)
        except KeyError:
            assert type(policy) is Failing
        assert model.config._attn_implementation == "sdpa"


def test_what_cannot_be_simulated_is_refused(tokens):
    model = build()
    with pytest.raises(ValueError, match="simulate: num_steps must be between 1 and 95, got 96"):
        simulate(model, tokens, LENGTH, Exact())
    with pytest.raises(ValueError, match="simulate: tokens must be int64 with 2 dimensions"):
        simulate(model, tokens[0], STEPS, Exact())
    bloom = transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2)
    )
    with pytest.raises(ValueError, match=r"simulate: .*model must .*, got BloomForCausalLM"):
        simulate(bloom, tokens, STEPS, Exact())
