"""SANTA: draw the value rows to read from the softmax itself, an unbiased estimate."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Policy, Read, Rows, any_of


@dataclass(frozen=True)
class SANTA(Policy):
    """Draws rows with their probabilities and averages them: the expected output is the exact one.

    Every head draws for itself, `fraction` times as many rows as it attends. A row drawn n times of
    M weighs n / M; it is read once, also where several heads drew it.

    The draws are systematic, the authors' S2ANTA of reduced variance: they stand at equal
    distances on the cumulated probabilities, with one random offset per step and head. (The
    authors' kernels do so tile by tile, with draws in proportion to a tile's mass.) The authors
    draw 1/16 of 32,768 keys and half of 512 (`--santa-s` in the examples of their code).

    Attributes:
        fraction (float): draws per attended key.
        seed (int): of the offsets, which follow from it, the layer, the head and the token alone.
    """

    source = "Lee et al., 2026, arXiv 2605.01910; code OPUSLab/SANTA"

    fraction: float
    seed: int = 0

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        num_draws = (self.fraction * rows.lengths.double()).round().clamp(min=1.0)[:, None]
        cumulated = rows.p.cumsum(-1, dtype=torch.float64)
        mass = cumulated[..., -1:].clone()
        # Draw i stands at (i + offset) / num_draws; so many lie below every key's upper end.
        below = cumulated.mul_(num_draws / mass).sub_(self._offsets(rows)).ceil_().float()
        drawn = below.diff(dim=-1, prepend=torch.zeros_like(below[..., :1]))
        used = drawn > 0
        return Read(
            weights=drawn.mul_((mass / num_draws).float()),
            v_rows=any_of(used, 0).sum(-1, dtype=torch.float32),
            k_rows=rows.lengths.float(),
            kept_mass=used.float().mul_(rows.p).sum(-1),
        )

    def _offsets(self, rows: Rows) -> torch.Tensor:
        """Offsets in [0, 1) of every head and step: float64 [G, R, 1]; the same on any device."""
        # The generator heeds the low 32 bits of its seed only.
        mixed = (self.seed * 1_000_003 + rows.layer) * 1009 + rows.head
        generator = torch.Generator().manual_seed(mixed % 2**32)
        # One per token, whatever the number of steps, so that a token always draws alike.
        offsets = torch.rand(rows.k.shape[0], rows.q.shape[0], generator=generator)
        return offsets[rows.start :].T[..., None].to(rows.k.device, torch.float64)


FAMILIES = {"SANTA": [SANTA(fraction) for fraction in (0.25, 0.1, 0.05, 0.02)]}
