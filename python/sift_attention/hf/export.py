"""Exports a Hugging Face decoder that sifts: programs of torch.export, packages of AOTInductor."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedModel

from ..config import SiftConfig
from .enable import enabled
from .exported_step import ExportedStep
from .layout import Layout, probe


@dataclass(frozen=True)
class ExportedDecoder:
    """A decoder as two programs over a static cache that belongs to the caller; see `export`.

    Attributes:
        prefill (ExportedProgram): for two or more tokens per sequence; dense.
        decode (ExportedProgram): for one token per sequence; sifted.
        layout (Layout): of the state.
    """

    prefill: ExportedProgram
    decode: ExportedProgram
    layout: Layout

    def package(self, folder: str | os.PathLike[str]) -> None:
        """Compile both programs with AOTInductor into prefill.pt2 and decode.pt2.

        Each carries the weights, and `layout.metadata()` as its metadata. Load them with
        `torch._inductor.aoti_load_package`, or in C++ with `AOTIModelPackageLoader`, after the
        operators: `import sift_attention`, or a program linked to SiftAttention::sift_attention.

        Args:
            folder: where the two files go; made if missing.
        """
        os.makedirs(folder, exist_ok=True)
        for name, program in (("prefill", self.prefill), ("decode", self.decode)):
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=os.path.join(folder, f"{name}.pt2"),
                inductor_configs={"aot_inductor.metadata": self.layout.metadata()},
            )


def export(
    model: PreTrainedModel, config: SiftConfig | None = None, *, batch: int = 1
) -> ExportedDecoder:
    """Export a decoder whose one-token steps sift, as programs without Python.

    Both programs take `(tokens, position, padding, state)` and return `(logits, rows_loaded)`:

    | tensor      | shape, dtype     | meaning                                                  |
    |-------------|------------------|----------------------------------------------------------|
    | tokens      | [B, R], int64    | the next tokens; R >= 2 for `prefill`, 1 for `decode`    |
    | position    | [1], int64       | tokens so far, padding included; position + R <= N       |
    | padding     | [B], int64       | how many of a sequence's first tokens are padding        |
    | state       | see `Layout`     | begins as `layout.empty_state(N)`; changed in place      |
    | logits      | [B, V]           | of the token after the last                              |
    | rows_loaded | [layers], int64  | value rows that this step loaded; 0 in layers that were  |
    |             |                  | dense                                                    |

    Batch size and dtype are fixed; R and the capacity N are not. A prefill attends to all of the
    capacity under a mask of R x N, so a long prompt had better come in several. To return to an
    earlier position, or to start again, run a prefill from there: a decode step that finds more or
    fewer keys than its sums cover is exact. The programs attend as the model does under `enable`
    with a static cache, up to rounding.

    Args:
        model: a decoder in evaluation mode, all of it on one device; not changed.
        config: what to do; None: the defaults. Only the uniform threshold, without warm-up steps,
            depends on nothing but the tensors above.
        batch: B.

    Returns:
        ExportedDecoder: the programs and the layout of their state.

    Raises:
        ValueError: the model is an encoder-decoder, has layers that do not keep all keys or cannot
            sift, or cannot be traced by torch.export; the threshold is not uniform, or there are
            warm-up steps; and where `enable` raises it.

    Example:
        >>> exported = sift_attention.hf.export(model, SiftConfig(c=2.0))
        >>> state = exported.layout.empty_state(4096)
        >>> no_padding = torch.zeros(1, dtype=torch.int64)
        >>> prefill, decode = exported.prefill.module(), exported.decode.module()
        >>> with torch.no_grad():
        ...     logits, _ = prefill(prompt, torch.tensor([0]), no_padding, state)
        ...     token, position = logits.argmax(-1, True), torch.tensor([prompt.shape[1]])
        ...     logits, rows_loaded = decode(token, position, no_padding, state)
        >>> exported.package("model")
    """
    config = config or SiftConfig()
    _check(model, config)
    with torch.no_grad(), enabled(model, config):
        layout = probe(model, config, batch)
        step = ExportedStep(model, config, layout)
        return ExportedDecoder(
            prefill=_trace(step, num_rows=5), decode=_trace(step, num_rows=1), layout=layout
        )


def _check(model: PreTrainedModel, config: SiftConfig) -> None:
    name = type(model).__name__
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    requirements = (
        (not model.config.is_encoder_decoder, "model must be a decoder", f"{name} with an encoder"),
        (not model.training, "model must be in evaluation mode", f"{name} in training mode"),
        (len(devices) == 1, "model must be on one device", f"{name} on {', '.join(devices)}"),
        (
            config.threshold == "uniform",
            'config.threshold must be "uniform", whose law needs no calibration',
            repr(config.threshold),
        ),
        (
            config.warmup_steps == 0,
            "config.warmup_steps must be 0, since programs count no steps",
            config.warmup_steps,
        ),
    )
    for holds, requirement, got in requirements:
        if not holds:
            raise ValueError(f"export: {requirement}, got {got}")


def _trace(step: ExportedStep, num_rows: int) -> ExportedProgram:
    layout = step.layout
    inputs = (
        torch.zeros(layout.batch, num_rows, dtype=torch.int64, device=layout.device),
        torch.zeros(1, dtype=torch.int64, device=layout.device),
        torch.zeros(layout.batch, dtype=torch.int64, device=layout.device),
        layout.empty_state(capacity=24),
    )
    capacity = Dim("capacity", min=3)
    cached = [{2: capacity}, {2: capacity}, None, None] * layout.num_layers
    rows = {1: Dim("rows", min=2)} if num_rows > 1 else None
    try:
        return torch.export.export(step, inputs, dynamic_shapes=(rows, None, None, cached))
    except Exception as error:
        name, first_line = type(step.model).__name__, str(error).strip().partition("\n")[0]
        raise ValueError(
            f"export: model must be one that torch.export can trace, got {name}: {first_line}"
        ) from error
