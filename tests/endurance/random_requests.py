"""Random requests to a model: finished ones, rolled back ones, and ones that are broken off."""

from __future__ import annotations

import random
from typing import Any

import torch
from tiny_models import VOCABULARY
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import sift_attention as sift

CONFIGS = [
    sift.SiftConfig(c=1.0, min_keys=0),
    sift.SiftConfig(threshold="quantile", quantile=0.5, min_keys=0, warmup_steps=2),
    sift.SiftConfig(c=2.0, min_keys=20, residual="renormalize"),
]


class BrokenOffError(Exception):
    """Raised by the user's own code in the midst of a generation."""


class Countdown:
    """Raises when it is called for the n-th time."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def count(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise BrokenOffError


class BreakingCriteria(Countdown, StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        self.count()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class BreakingStreamer(Countdown, BaseStreamer):
    def put(self, value: Tensor) -> None:
        self.count()

    def end(self) -> None:
        """Not reached."""


class Requests:
    """Draws and serves requests; the same ones for the same seed.

    Attributes:
        served (dict[str, int]): how many of each kind there were.
        num_broken_off (int): how many of them ended in an exception.
    """

    def __init__(self, model: PreTrainedModel, seed: int = 0) -> None:
        self._model = model
        self._random = random.Random(seed)
        self.served: dict[str, int] = {}
        self.num_broken_off = 0
        self._kinds = {
            "plain": self._plain,
            "beams": self._beams,
            "static": self._static,
            "criteria": self._criteria,
            "streamer": self._streamer,
            "layer": self._layer,
            "rollback": self._rollback,
            "turns": self._turns,
        }

    def serve(self) -> None:
        """One request, finished or broken off."""
        kind = self._random.choice(list(self._kinds))
        self.served[kind] = self.served.get(kind, 0) + 1
        try:
            self._kinds[kind]()
        except BrokenOffError:
            self.num_broken_off += 1

    def _inputs(self, batch: int | None = None) -> dict[str, Tensor]:
        batch = batch or self._random.randint(1, 4)
        length = self._random.choice([1, 7, 20, 33, 64, 100])
        tokens = torch.randint(3, VOCABULARY, (batch, length))
        mask = torch.ones_like(tokens)
        padding = self._random.randint(0, length // 2)
        if batch > 1:
            mask[0, :padding] = 0
        return {"input_ids": tokens.masked_fill(mask == 0, 0), "attention_mask": mask}

    def _generate(self, inputs: dict[str, Tensor] | None = None, **options: Any) -> Any:
        steps = self._random.randint(1, 6)
        settings = {"max_new_tokens": steps, "do_sample": False, "use_cache": True, **options}
        return self._model.generate(**(inputs or self._inputs()), **settings)

    def _plain(self) -> None:
        self._generate()

    def _beams(self) -> None:
        self._generate(self._inputs(self._random.randint(1, 2)), num_beams=3)

    def _static(self) -> None:
        self._generate(cache_implementation="static")

    def _criteria(self) -> None:
        breaking = BreakingCriteria(self._random.randint(1, 4))
        self._generate(
            max_new_tokens=6,
            num_beams=self._random.choice([1, 2]),
            stopping_criteria=StoppingCriteriaList([breaking]),
        )

    def _streamer(self) -> None:
        breaking = BreakingStreamer(self._random.randint(1, 4))
        self._generate(self._inputs(1), max_new_tokens=6, streamer=breaking)

    def _layer(self) -> None:
        """Something in the model raises: a torn cache, which is dropped."""
        countdown = Countdown(self._random.randint(1, 4))
        parts = [part for name, part in self._model.named_modules() if name.endswith("mlp")]
        hook = self._random.choice(parts).register_forward_hook(lambda *_: countdown.count())
        try:
            self._generate(max_new_tokens=6)
        finally:
            hook.remove()

    def _rollback(self) -> None:
        cache = DynamicCache(config=self._model.config)
        tokens = self._inputs(1)["input_ids"]
        with torch.no_grad():
            for _ in range(3):
                self._model(tokens, past_key_values=cache)
                tokens = torch.randint(3, VOCABULARY, (1, self._random.randint(1, 4)))
                cache.crop(-self._random.randint(0, cache.get_seq_length() - 1))

    def _turns(self) -> None:
        first = self._generate(return_dict_in_generate=True)
        batch = first.sequences.shape[0]
        turn = torch.randint(3, VOCABULARY, (batch, 5))
        longer = torch.cat([first.sequences, turn], 1)
        mask = torch.ones_like(longer)
        self._generate(
            {"input_ids": longer, "attention_mask": mask}, past_key_values=first.past_key_values
        )
