"""Switches sifting on for a Hugging Face model, and off again."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from ..config import SiftConfig
from .attention import NAME, Forward, raise_unsupported
from .cache import adopt, check_whole, preallocate
from .pipeline import held_layers
from .stats import SiftStats, Totals

# Models that attend through the attention interface without declaring it.
UNDECLARED = frozenset({"BartForConditionalGeneration"})
# Methods of the model that call those of the handle while it is enabled.
REPLACED = ("_prepare_cache_for_generation", "_has_unfinished_sequences")


class Handle:
    """A model that sifts; made by `enable`.

    Args:
        model (PreTrainedModel): the model, switched to sift here.
        config: what it does.

    Attributes:
        model (PreTrainedModel): the model.
        config (SiftConfig): what it does; `enable` again to change it.
    """

    def __init__(self, model: Any, config: SiftConfig) -> None:
        self.model = model
        self.config = config
        self._totals = Totals(owner=id(model))
        self._argument_names = list(inspect.signature(type(model).forward).parameters)[1:]
        self._held = held_layers(model)
        self._was_called = False
        self._is_idle = False  # this process only keeps others company in their forwards
        self._previous = switch_attention(model, NAME, "enable")
        self._hooks = (
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, with_kwargs=True),
        )
        model.sift_handle = self
        for name in REPLACED:
            setattr(model, name, getattr(self, name))
        model.init_continuous_batching = raise_unsupported

    def stats(self) -> SiftStats:
        """What the decode steps since `enable` or `reset_stats` did; waits for the device."""
        return self._totals.stats()

    def reset_stats(self) -> None:
        """Count from zero."""
        self._totals.reset()

    def disable(self) -> None:
        """Restore the model as it was before `enable`; a second call does nothing."""
        model = self.model
        if getattr(model, "sift_handle", None) is not self:
            return
        for hook in self._hooks:
            hook.remove()
        del model.sift_handle, model.init_continuous_batching
        for name in REPLACED:
            delattr(model, name)
        # Before transformers 5.17 a static cache stays on the model between calls of generate.
        model.__dict__.pop("_cache", None)
        switch_attention(model, self._previous, "disable")
        total = self.stats().total
        if self._was_called and total.decode_calls == 0:
            reasons = ", ".join(total.dense_calls) or "no forward had one query token and a cache"
            warnings.warn(f"sift_attention: no decode step was sifted: {reasons}", stacklevel=2)

    def _before_forward(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Make sure that there is a cache with sifting states, and hand them to the layers."""
        if "sift_state" in kwargs:  # the caller brought his own
            return args, kwargs
        if len(args) > 1:
            args, kwargs = (), {**dict(zip(self._argument_names, args, strict=False)), **kwargs}
        output_attentions = kwargs.get("output_attentions")
        if model.config.output_attentions if output_attentions is None else output_attentions:
            raise ValueError(
                "forward: output_attentions must be False while sifting, got True; "
                'use attn_implementation="eager"'
            )
        is_compiling = torch.compiler.is_compiling()
        if not is_compiling:
            self._was_called = True
        cache = kwargs.get("past_key_values")
        if cache is None and not is_compiling and self._wants_cache(kwargs.get("use_cache")):
            cache = DynamicCache(config=model.config)
            kwargs = {**kwargs, "past_key_values": cache}
        if isinstance(cache, Cache):
            state = adopt(cache, self.config, self._totals, self._held)
            if not is_compiling:
                if state.in_forward:
                    check_whole(cache, self._held)
                state.in_forward = True
            tokens = kwargs.get("input_ids", args[0] if args else None)
            active = None
            if self._is_idle and tokens is not None:
                active = torch.zeros_like(tokens[:, 0], dtype=torch.bool)
            elif state.pad_token is not None and tokens is not None:
                batch, num_rows = tokens.shape
                if batch > 1 and num_rows == 1:  # a single sequence ends with generate
                    active = tokens[:, 0] != state.pad_token
            kwargs = {**kwargs, "sift_state": Forward(state, active)}
        return args, kwargs

    def _after_forward(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Note that the forward reached its end."""
        if not torch.compiler.is_compiling() and "sift_state" in kwargs:
            kwargs["sift_state"].cache.in_forward = False

    def _wants_cache(self, use_cache: bool | None) -> bool:
        config = self.model.config
        if use_cache is None:
            use_cache = getattr(config.get_text_config(), "use_cache", True)
        return bool(use_cache) and not (self.model.training or config.is_encoder_decoder)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Adopt the cache that `generate` prepares before any of its forwards is traced."""
        model = self.model
        prepare = type(model)._prepare_cache_for_generation
        result = prepare(model, generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        if isinstance(cache, Cache):
            state = adopt(cache, self.config, self._totals, self._held)
            # Without an end token no row ever finishes.
            ends = getattr(generation_config, "_eos_token_tensor", None) is not None
            state.pad_token = generation_config._pad_token_tensor if ends else None
            text = model.config.get_text_config(decoder=True)
            num_kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
            group_size = text.num_attention_heads // num_kv_heads
            preallocate(cache, text.num_hidden_layers, group_size)
        return result

    def _has_unfinished_sequences(
        self, this_peer_finished: Any, synced_gpus: bool, device: torch.device
    ) -> bool:
        """Notice that other processes are not done, so that `generate` goes on without effect."""
        proceeds: bool = type(self.model)._has_unfinished_sequences(
            self.model, this_peer_finished, synced_gpus, device=device
        )
        self._is_idle = synced_gpus and proceeds and bool(this_peer_finished)
        return proceeds


def enable(model: PreTrainedModel, config: SiftConfig | None = None) -> Handle:
    """Sift the decode steps of a Hugging Face model; `disable` of the handle undoes it.

    Steps that cannot be sifted (several query tokens, sliding windows, training, additive masks,
    dtypes or head sizes that the operator lacks) run dense and are counted with their reason. Call
    the model itself: calls of a module inside it, and of its `forward` compiled under another name,
    are dense and not counted. Threads may share an enabled model; enable it before they start and
    disable it after they end.

    Args:
        model: a decoder, the text decoder of a vision-language model, or an encoder-decoder, of
            which the decoder's self-attention sifts.
        config: what to do; None: the defaults. On an enabled model it replaces the previous one.

    Returns:
        Handle: the same one as long as the model stays enabled.

    Raises:
        ValueError: the model does not attend through the attention interface of transformers, or
            its forward takes no keyword arguments.

    Example:
        >>> handle = sift_attention.hf.enable(model)
        >>> model.generate(**inputs, max_new_tokens=100)
        >>> print(handle.stats())
        >>> handle.disable()
    """
    config = config or SiftConfig()
    handle: Handle | None = getattr(model, "sift_handle", None)
    if handle is not None:
        handle.config = config
        return handle
    check_attention(model, "enable")
    return Handle(model, config)


def check_attention(model: Any, caller: str) -> None:
    """Refuse, in the name of `caller`, a model whose attention cannot be replaced."""
    name = type(model).__name__
    parameters = inspect.signature(type(model).forward).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise ValueError(f"{caller}: the forward of model must take **kwargs, got {name}")
    if not (getattr(model, "_supports_attention_backend", False) or name in UNDECLARED):
        raise ValueError(f"{caller}: model must attend through AttentionInterface, got {name}")


@contextmanager
def enabled(model: PreTrainedModel, config: SiftConfig | None = None) -> Iterator[Handle]:
    """`enable` for the length of a `with` block; a nested block restores the outer configuration.

    Args:
        model: as for `enable`.
        config: as for `enable`.

    Yields:
        Handle: of the model.
    """
    outer: Handle | None = getattr(model, "sift_handle", None)
    outer_config = None if outer is None else outer.config
    handle = enable(model, config)
    try:
        yield handle
    finally:
        if outer is None:
            handle.disable()
        else:
            enable(model, outer_config)


def switch_attention(model: PreTrainedModel, name: str, caller: str) -> str:
    """Set the attention of the text decoder only; returns the previous one."""
    text = model.config.get_text_config()
    previous: str = text._attn_implementation
    request: str | dict[str, str] = name
    if text is not model.config:
        keys = [key for key in model.config.sub_configs if getattr(model.config, key) is text]
        request = dict.fromkeys(keys, name)
    model.set_attn_implementation(request)
    if text._attn_implementation != name:
        raise ValueError(
            f"{caller}: model must let its attention be set to {name!r}, got {type(model).__name__}"
        )
    return previous
