"""The model `hf-sift` of lm-evaluation-harness, whose tasks then measure sifted attention.

    python -m sift_attention.eval.lm_eval run --model hf-sift \
        --model_args pretrained=PATH c=2.0 decode_from=512 --tasks hellaswag --num_fewshot 20

takes the harness' own command line. `docs/lm_eval.md` says what is sifted.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from sift_attention import SiftConfig
from sift_attention.eval.byte_tokenizer import byte_tokenizer
from sift_attention.eval.likelihood import Likelihood, step_through
from sift_attention.hf import enable

# As the harness hands them over: ((context, continuation) or None, tokens of both).
Request = tuple[tuple[str, str] | None, list[int], list[int]]

_log = logging.getLogger("lm_eval.hf-sift")  # shown as the harness' own messages are


@dataclass(frozen=True)
class _Row:
    """One run of the model; requests with the same tokens but another last one share it.

    Attributes:
        prefill: tokens read densely.
        first: the token whose prediction is the first to be scored.
        tokens: all of the request but the last.
    """

    prefill: int
    first: int
    tokens: tuple[int, ...]


@register_model("hf-sift")
class SiftLM(HFLM):
    """A Hugging Face causal language model that decodes through the operator.

    A log-likelihood reads the context densely and feeds its last token and the continuation one by
    one; `generate_until` is `generate()`.

    Args:
        pretrained: path, name or PreTrainedModel.
        decode_from (int): tokens of the context to read densely; those that follow are decode steps
            as the continuation is. None: all of it but its last token. Either way the tokens that
            attend fewer than `min_keys` keys, which decode exactly, are read densely.
        tokenizer: as for `hf`; "bytes" for byte models that have none.
        device: as for `hf`; the GPU where there is one.
        batch_size (int): sequences of the same prompt length that decode together; not "auto".
        **kwargs: fields of SiftConfig, and whatever the harness' `hf` takes.

    Raises:
        ValueError: an argument is outside its range, or the model cannot be sifted.
    """

    def __init__(
        self,
        pretrained: Any,
        decode_from: int | None = None,
        tokenizer: Any = None,
        device: str | None = None,
        batch_size: int | str = 1,
        **kwargs: Any,
    ) -> None:
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"hf-sift: batch_size must be a positive number, got {batch_size!r}")
        if decode_from is not None and (not isinstance(decode_from, int) or decode_from < 1):
            raise ValueError(f"hf-sift: decode_from must be at least 1, got {decode_from!r}")
        names = [field.name for field in fields(SiftConfig) if field.name in kwargs]
        options = {name: kwargs.pop(name) for name in names}
        if isinstance(options.get("skip_layers"), int):  # the command line knows no tuples
            options["skip_layers"] = (options["skip_layers"],)
        elif "skip_layers" in options:
            options["skip_layers"] = tuple(options["skip_layers"])
        config = SiftConfig(**options)
        super().__init__(
            pretrained,
            backend="causal",
            tokenizer=byte_tokenizer() if tokenizer == "bytes" else tokenizer,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            batch_size=int(batch_size),
            **kwargs,
        )
        self._decode_from = decode_from
        self._sift = enable(self.model, config)
        self._scored_tokens = self._decoded_tokens = 0

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: Any = None
    ) -> list[tuple[float, bool]]:
        """What the harness asks for: (log-likelihood, is greedy) of every continuation."""
        rows = [self._row(context, continuation) for _, context, continuation in requests]
        found: dict[_Row, Likelihood] = {}
        with tqdm(
            total=len(set(rows)),
            desc="decoding",
            unit="row",
            disable=disable_tqdm or self.rank != 0,
        ) as progress:
            for batch in _batches(rows, self.batch_size):
                prefill, first = batch[0].prefill, min(row.first for row in batch)
                tokens = [row.tokens for row in batch]
                found.update(
                    zip(batch, step_through(self.model, tokens, prefill, first), strict=True)
                )
                progress.update(len(batch))
        answers = []
        for (text, _, continuation), row in zip(requests, rows, strict=True):
            answer = found[row].of(continuation)
            answers.append(answer)
            self._scored_tokens += len(continuation)
            self._decoded_tokens += min(len(continuation), max(len(row.tokens) - row.prefill, 0))
            if text is not None:  # else a window of loglikelihood_rolling
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def _row(self, context: list[int], continuation: list[int]) -> _Row:
        tokens = (*context, *continuation)[-(self.max_length + 1) : -1]
        first = len(tokens) - len(continuation)
        if first < 0:
            raise ValueError(
                f"hf-sift: continuations must have at most max_length = {self.max_length} tokens, "
                f"got {len(continuation)}"
            )
        dense = first if self._decode_from is None else min(first, self._decode_from)
        return _Row(max(dense, self._sift.config.min_keys - 1, 1), first, tokens)

    @property
    def sifted(self) -> dict[str, Any]:
        """What was sifted so far.

        Returns:
            dict: `config` and `decode_from`; `scored_tokens` of log-likelihoods, and
            `decoded_tokens`, how many of them a decode step predicted; totals of the decode steps,
            those of `generate_until` included: `decode_calls` and `dense_calls` of layers,
            `loaded_fraction` of the value rows, `dropped_mass`, `bytes_fraction` of K and V bytes.
        """
        total = self._sift.stats().total
        return {
            "config": asdict(self._sift.config),
            "decode_from": self._decode_from,
            "scored_tokens": self._scored_tokens,
            "decoded_tokens": self._decoded_tokens,
            "decode_calls": total.decode_calls,
            "dense_calls": total.dense_calls,
            "loaded_fraction": total.loaded_fraction,
            "dropped_mass": total.dropped_mass,
            "bytes_fraction": total.bytes_read / total.bytes_dense if total.keys else 1.0,
        }

    def get_model_info(self) -> dict[str, Any]:
        """What the harness adds to its results when all is done: also `sifted`, which is logged."""
        stats = self._sift.stats()
        _log.info(
            "%s\n%d of %d scored tokens were predicted by decode steps\n%s",
            self._sift.config,
            self._decoded_tokens,
            self._scored_tokens,
            stats,
        )
        if stats.total.rows_loaded == stats.total.keys:
            _log.warning(
                "hf-sift: no value row was left out, so these results are exact attention's"
            )
        return {**super().get_model_info(), "sift": self.sifted}


def _batches(rows: Sequence[_Row], batch_size: int) -> list[list[_Row]]:
    """Distinct rows, the longest first, in batches that read equally many tokens densely."""
    by_prefill: dict[int, list[_Row]] = defaultdict(list)
    for row in sorted(set(rows), key=lambda row: (-len(row.tokens), row.tokens)):
        by_prefill[row.prefill].append(row)
    return [
        group[start : start + batch_size]
        for group in by_prefill.values()
        for start in range(0, len(group), batch_size)
    ]


if __name__ == "__main__":
    cli_evaluate()
