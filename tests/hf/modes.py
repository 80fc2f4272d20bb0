"""Ways to decode with transformers; each returns the tokens and the logits it saw."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from packaging.version import Version
from tiny_models import FAMILIES, LAYERS, VERSION, VOCABULARY, build
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

PROMPT, NEW = 20, 6
Result = tuple[Tensor, Tensor]


def skip_what_stock_cannot(family: str, mode: str) -> None:
    """Skip combinations in which the stock model fails in the installed transformers."""
    slides = FAMILIES[family].full_layers < FAMILIES[family].options.get(
        "num_hidden_layers", LAYERS
    )
    speculates = mode in ("assisted", "prompt_lookup")
    if slides and speculates and VERSION.major == 5 and Version("5.17") > VERSION:
        pytest.skip("full sliding layers cannot be cropped")
    if family == "llama4" and speculates and VERSION.major < 5:
        pytest.skip("the cache does not know of the chunks")
    if family == "llama4" and "static" in mode and Version("5.23") > VERSION:
        pytest.skip("generate makes no masks for chunks in a static cache")


def prompt(batch: int = 2, length: int = PROMPT) -> Tensor:
    """Random tokens, the same for every caller; none is the pad token."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(3, VOCABULARY, (batch, length), generator=generator, device="cpu")
    return tokens.to(torch.get_default_device())


def left_padded() -> dict[str, Tensor]:
    """Two rows, the first of which has 7 tokens of padding."""
    tokens = prompt()
    mask = torch.ones_like(tokens)
    mask[0, :7] = 0
    return {"input_ids": tokens.masked_fill(mask == 0, 0), "attention_mask": mask}


def generate(model: PreTrainedModel, inputs: Tensor | dict[str, Tensor], **options: Any) -> Result:
    """`model.generate`, greedy unless told otherwise."""
    if isinstance(inputs, Tensor):
        inputs = {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}
    settings = {"max_new_tokens": NEW, "do_sample": False, **options}
    out = model.generate(
        **inputs, **settings, return_dict_in_generate=True, output_logits=True, use_cache=True
    )
    return out.sequences, torch.stack(out.logits)


def step_through(model: PreTrainedModel, cache: Any, tokens: Tensor, steps: int = NEW) -> Result:
    """Greedy decoding by calling the model; the cache may be None or filled."""
    logits = []
    with torch.no_grad():
        for _ in range(steps):
            out = model(tokens, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits[:, -1])
            tokens = logits[-1].argmax(-1, keepdim=True)
    return tokens, torch.stack(logits)


def multi_turn(model: PreTrainedModel, implementation: str | None = None) -> Result:
    options = {"return_dict_in_generate": True, "do_sample": False, "max_new_tokens": NEW}
    first = model.generate(prompt(), attention_mask=torch.ones_like(prompt()), **options)
    longer = torch.cat([first.sequences, prompt(length=9)], dim=1)
    return generate(model, longer, past_key_values=first.past_key_values)


def copied_prefix(model: PreTrainedModel) -> Result:
    """Two continuations of one prefix, decoded alternately, each on its copy of the cache."""
    prefix = DynamicCache(config=model.config)
    with torch.no_grad():
        model(prompt(1), past_key_values=prefix)
    results = []
    for token in (5, 6):
        cache = copy.deepcopy(prefix)
        results.append(step_through(model, cache, torch.tensor([[token]])))
    tokens, logits = zip(*results, strict=True)
    return torch.cat(tokens), torch.cat(logits)


def cropped(model: PreTrainedModel) -> Result:
    """Decode, take tokens back and decode something else."""
    cache = DynamicCache(config=model.config)
    step_through(model, cache, prompt(1, 6), steps=2)
    cache.crop(-1)  # below any sliding window: those layers cannot go back
    return step_through(model, cache, prompt(1, 3), steps=3)


def assisted(model: PreTrainedModel) -> Result:
    return generate(model, prompt(1), assistant_model=build("llama", seed=1))


def sampled(model: PreTrainedModel) -> Result:
    torch.manual_seed(3)
    return generate(model, prompt(), do_sample=True, top_k=20, num_return_sequences=2)


def reset_and_reused(model: PreTrainedModel) -> Result:
    """One static cache for two prompts."""
    cache = StaticCache(config=model.config, max_cache_len=PROMPT + NEW)
    step_through(model, cache, prompt(length=9), steps=3)
    cache.reset()
    return step_through(model, cache, prompt())


MODES: dict[str, Callable[[PreTrainedModel], Result]] = {
    "greedy": lambda model: generate(model, prompt()),
    "static": lambda model: generate(model, prompt(), cache_implementation="static"),
    "left_padded": lambda model: generate(model, left_padded()),
    "left_padded_static": lambda model: generate(
        model, left_padded(), cache_implementation="static"
    ),
    "beams": lambda model: generate(model, left_padded(), num_beams=3),
    "beams_static": lambda model: generate(
        model, prompt(), num_beams=3, cache_implementation="static"
    ),
    "sampled": sampled,
    "chunked_prefill": lambda model: generate(model, prompt(), prefill_chunk_size=8),
    "chunked_prefill_static": lambda model: generate(
        model, prompt(), prefill_chunk_size=8, cache_implementation="static"
    ),
    "multi_turn": multi_turn,
    "copied_prefix": copied_prefix,
    "cropped": cropped,
    "assisted": assisted,
    "prompt_lookup": lambda model: generate(
        model, prompt(1), prompt_lookup_num_tokens=3, eos_token_id=VOCABULARY
    ),
    "guidance": lambda model: generate(model, prompt(), guidance_scale=1.5),
    "own_loop": lambda model: step_through(model, None, prompt()),
    "reset_static": reset_and_reused,
}
