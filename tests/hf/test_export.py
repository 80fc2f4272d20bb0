"""Exported programs decode as the model does; what cannot be exported is refused in a sentence."""

from __future__ import annotations

import pytest
import torch
import transformers
from modes import NEW, PROMPT, generate, left_padded, prompt
from tiny_models import build

import sift_attention as sift

CONFIG = sift.SiftConfig(c=1.0, min_keys=24)  # the first steps of a prompt of 20 are exact


@torch.no_grad()
def run(exported, inputs, steps=NEW, chunks=(PROMPT,), state=None):
    """Tokens, logits and loaded rows of greedy decoding by the programs."""
    tokens = inputs["input_ids"]
    padding = (inputs["attention_mask"] == 0).sum(1)
    if state is None:
        state = exported.layout.empty_state(tokens.shape[1] + steps)
    prefill, decode = exported.prefill.module(), exported.decode.module()
    position, results = 0, []
    for chunk in tokens.split(chunks, dim=1):
        logits, loaded = prefill(chunk, torch.tensor([position]), padding, state)
        assert not loaded.any()
        position += chunk.shape[1]
    for _ in range(steps):
        results.append((logits.argmax(-1), logits, loaded))
        token = results[-1][0][:, None]
        logits, loaded = decode(token, torch.tensor([position]), padding, state)
        position += 1
    tokens, logits, loaded = map(torch.stack, zip(*results, strict=True))
    return tokens.T, logits, loaded.sum(0).tolist()


def assert_equals_eager(model, config, got, inputs):
    with sift.hf.enabled(model, config) as handle:
        tokens, logits = generate(model, inputs)
        layers = handle.stats().layers
    assert torch.equal(got[0], tokens[:, PROMPT:])
    torch.testing.assert_close(got[1], logits, atol=1e-5, rtol=0)
    assert got[2] == [layer.rows_loaded for layer in layers.values()]
    return sum(got[2]), sum(layer.keys for layer in layers.values())


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "mistral"])
def test_programs_equal_the_model(family):
    model, inputs = build(family), left_padded()
    exported = sift.hf.export(model, CONFIG, batch=2)
    rows, keys = assert_equals_eager(model, CONFIG, run(exported, inputs), inputs)
    assert 0 < rows < keys


def test_bfloat16_equals_a_static_cache_bit_for_bit():
    model, inputs = build("llama").bfloat16(), left_padded()
    got = run(sift.hf.export(model, CONFIG, batch=2), inputs)
    with sift.hf.enabled(model, CONFIG):
        tokens, logits = generate(model, inputs, cache_implementation="static")
    assert torch.equal(got[0], tokens[:, PROMPT:])
    assert torch.equal(got[1], logits)


def test_a_state_serves_any_capacity_chunks_and_another_prompt():
    model, inputs = build("llama"), left_padded()
    exported = sift.hf.export(model, CONFIG, batch=2)
    state = exported.layout.empty_state(100)
    first = run(exported, inputs, chunks=(7, 2, 11), state=state)
    assert_equals_eager(model, CONFIG, first, inputs)
    for tensor in state[0::4] + state[1::4]:
        tensor[:, :, PROMPT + NEW :] = 1e4  # what lies beyond the tokens so far does not matter
    inputs = {"input_ids": prompt().flip(1), "attention_mask": torch.ones(2, PROMPT)}
    assert_equals_eager(model, CONFIG, run(exported, inputs, state=state), inputs)


@torch.no_grad()
def test_decode_alone_builds_the_state():
    model = build("llama")
    exported = sift.hf.export(model, CONFIG, batch=2)
    decode, tokens = exported.decode.module(), prompt()
    states = [exported.layout.empty_state(PROMPT) for _ in range(2)]
    exported.prefill.module()(tokens, torch.tensor([0]), torch.zeros(2).long(), states[0])
    for position in range(PROMPT):
        token = tokens[:, position : position + 1]
        decode(token, torch.tensor([position]), torch.zeros(2).long(), states[1])
    for got, want in zip(*states, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_skipped_layers_stay_dense():
    model, inputs = build("llama"), left_padded()
    config = sift.SiftConfig(c=1.0, min_keys=0, skip_layers=(0,))
    exported = sift.hf.export(model, config, batch=2)
    assert_equals_eager(model, config, run(exported, inputs), inputs)
    assert torch.ops.sift_attention.decode.default in calls(exported.decode)
    assert torch.ops.sift_attention.decode.default not in calls(exported.prefill)


def calls(program):
    return [node.target for node in program.graph.nodes]


def test_the_model_stays_as_it_was():
    model = build("llama")
    stock = model.config._attn_implementation
    sift.hf.export(model)
    assert model.config._attn_implementation == stock
    with sift.hf.enabled(model, CONFIG) as handle:
        generate(model, prompt())
        stats = handle.stats()
        sift.hf.export(model, batch=2)
        assert handle.stats() == stats
        assert handle.config is CONFIG


def encoder_decoder():
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(d_model=64, encoder_layers=1, decoder_layers=1, vocab_size=128)
    ).eval()


class Unpredictable(transformers.LlamaForCausalLM):
    """Looks at what it computes, which no recorded program can."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        assert out.logits.sum() < torch.inf
        return out


@pytest.mark.parametrize(
    ("model", "config", "sentence"),
    [
        (encoder_decoder, {}, "model must be a decoder, got BartFor.* with an encoder"),
        (lambda: build("llama").train(), {}, "model must be in evaluation mode, got Llama"),
        (
            lambda: build("llama"),
            {"threshold": "quantile"},
            "config.threshold must be \"uniform\", .*, got 'quantile'",
        ),
        (lambda: build("llama"), {"warmup_steps": 2}, "config.warmup_steps must be 0, .*, got 2"),
        (lambda: build("gemma3"), {}, r"sliding windows in layers \[0\] of Gemma3ForCausalLM"),
        (lambda: build("mistral_sliding"), {}, r"sliding windows in layers \[0, 1\] of Mistral"),
        (lambda: build("llama", head_dim=48), {}, "got layer 0 of LlamaForCausalLM: head size"),
        (lambda: build("llama").double(), {}, "got layer 0 of LlamaForCausalLM: dtype"),
        (
            lambda: Unpredictable(build("llama").config).eval(),
            {},
            "model must be one that torch.export can trace, got Unpredictable: ",
        ),
    ],
)
def test_refusals(model, config, sentence):
    with pytest.raises(ValueError, match=rf"^export: .*{sentence}") as caught:
        sift.hf.export(model(), sift.SiftConfig(**config))
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_no_room():
    exported = sift.hf.export(build("llama"))
    with pytest.raises((IndexError, RuntimeError), match="index"):
        exported.decode.module()(
            torch.zeros(1, 1).long(),
            torch.tensor([8]),
            torch.zeros(1).long(),
            exported.layout.empty_state(8),
        )
