"""What a decode policy sees, what it answers, and the arithmetic that policies share.

A policy decides for one key/value head at a time which rows each decode step reads. It sees exact
scores and answers with *effective weights*: the factor of every value row in the output, however it
got there. That one form covers dropped rows, replaced rows, sampled rows and estimates, so that a
simulation of any policy is `weights @ v`.

Sizes: G query heads that share the key/value head, N tokens, the last R of which are decode steps,
D the head dimension. Step r is token N - R + r and attends the keys 0 ... N - R + r.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from sift_attention.config import SiftConfig

Residual = Literal["mean", "mean of dropped", "renormalize", "none"]

# Below this, what probabilities have left is too little for what remains to be told apart.
_LEAST_MASS = 1e-30

# Shares of the keys that a head keeps, for policies whose budget is such a share.
FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Rows:
    """The decode steps of one key/value head, in one layer of one sequence.

    Attributes:
        q (Tensor[G, N, D], float32): queries of all tokens, those of the prompt included.
        k (Tensor[N, D], float32): keys, rotated as the model does.
        v (Tensor[N, D], float32): values.
        num_steps (int): R.
        scale (float): factor of the scores.
        softcap (float): 0, or the cap of the scores.
        sinks (Tensor[G], float32, or None): sink logits.
        layer (int): index of the layer.
        head (int): index of the key/value head.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    num_steps: int
    scale: float
    softcap: float = 0.0
    sinks: Tensor | None = None
    layer: int = 0
    head: int = 0

    @property
    def start(self) -> int:
        """Tokens of the prompt, N - R."""
        return self.k.shape[0] - self.num_steps

    @property
    def tokens(self) -> Tensor:
        """Positions of the decode steps: int64 [R]."""
        return torch.arange(self.start, self.k.shape[0], device=self.k.device)

    @cached_property
    def lengths(self) -> Tensor:
        """Attended keys of every step, S: int64 [R]."""
        return self.tokens + 1

    @cached_property
    def attended(self) -> Tensor:
        """Which keys every step attends: bool [R, N]."""
        return torch.arange(self.k.shape[0], device=self.k.device) < self.lengths[:, None]

    @cached_property
    def p(self) -> Tensor:
        """Exact probabilities of the decode steps: float32 [G, R, N]; 0 where not attended."""
        return self.probabilities(self.tokens)

    @cached_property
    def mass(self) -> Tensor:
        """Sum of `p` over the keys: float32 [G, R]; less than 1 where there are sinks."""
        return self.p.sum(-1)

    def scores(self, tokens: Tensor) -> Tensor:
        """Scores before the softmax of the queries of some tokens, prompt or not.

        Args:
            tokens (Tensor[M], int64): positions; token t attends the keys 0 ... t.

        Returns:
            Tensor[G, M, N]: float32; -inf where a key is not attended.
        """
        return self.scores_of(self.q[:, tokens], self.k, tokens)

    def scores_of(self, q: Tensor, k: Tensor, tokens: Tensor) -> Tensor:
        """Scores of other queries and keys, such as sketches of these, as the model makes them.

        Args:
            q (Tensor[H, M, E], float32): of any number of heads.
            k (Tensor[N, E], float32): of all tokens, or of the first ones up to the last query.
            tokens (Tensor[M], int64): positions of the queries.

        Returns:
            Tensor[H, M, N]: as of `scores`.
        """
        later = torch.arange(len(k), device=k.device) > tokens[:, None]
        hidden = torch.zeros(later.shape, device=k.device).masked_fill_(later, -torch.inf)
        hidden = hidden.expand(len(q), -1, -1)
        # On a CPU a product that adds takes half the time of product, scale and sum.
        if self.softcap == 0.0:
            return torch.baddbmm(hidden, q, k.T.expand(len(q), -1, -1), alpha=self.scale)
        scores = (q @ k.T).mul_(self.scale / self.softcap)
        return hidden.add(scores.tanh_(), alpha=self.softcap)

    def probabilities(self, tokens: Tensor) -> Tensor:
        """Exact probabilities, float32 [G, M, N]; arguments as of `scores`."""
        return self.softmax(self.scores(tokens))

    def softmax(self, scores: Tensor) -> Tensor:
        """Softmax of scores [G, M, N] over the keys and the sink, which has no column."""
        if self.sinks is None:
            return scores.softmax(-1)
        sink = self.sinks[:, None, None].expand(*scores.shape[:2], 1)
        return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]


@dataclass(frozen=True)
class Read:
    """What a policy made of the decode steps of one key/value head.

    Bytes are counted in rows: 1 is one key or value row of D elements in the model's dtype.

    Attributes:
        weights (Tensor[G, R, N], float32): effective weights of the value rows.
        v_rows (Tensor[R], float32): value rows read, each once for the heads that share it.
        k_rows (Tensor[R], float32): everything else that was read: key rows, and in their unit
            the summaries, sketches and indices that a policy consults.
        kept_mass (Tensor[G, R], float32): exact probability on the value rows read.
    """

    weights: Tensor
    v_rows: Tensor
    k_rows: Tensor
    kept_mass: Tensor


class Policy(ABC):
    """Which rows decode steps read; subclasses are frozen dataclasses of their settings.

    Attributes:
        source: paper, or the like, that describes the policy.
        is_oracle: whether the policy uses what no implementation knows before it reads V.
    """

    source: ClassVar[str]
    is_oracle: ClassVar[bool] = False

    @abstractmethod
    def read(self, rows: Rows) -> Read:
        """Decide for every decode step of a key/value head.

        A step may depend on itself and on earlier tokens only.
        """

    def calibrate(self, observed: Mapping[tuple[int, int], Sequence[Rows]]) -> Policy:
        """The policy with what it learns offline from exact attention; most learn nothing.

        Args:
            observed: for every (layer, key/value head) a few calibration sequences, other than
                those that are scored.
        """
        return self

    def sift_config(self) -> SiftConfig | None:
        """The configuration with which the operator decides alike, if there is one."""
        return None


def attend(
    rows: Rows, used: Tensor, residual: Residual = "none", k_rows: Tensor | None = None
) -> Read:
    """Attend some value rows with their exact probabilities.

    Args:
        rows: the decode steps.
        used (Tensor[G, R, N], or [1, R, N] for all heads, bool): the value rows that each query
            head uses. Where a head uses none, it gets its largest key.
        residual: what stands in for the others: "mean" adds the dropped mass times the mean of all
            attended value rows, "mean of dropped" times the mean of those that were not used,
            "renormalize" divides by the used mass, "none" does nothing.
        k_rows (Tensor[R] or None): see Read; None: every attended key.

    Returns:
        Read: value rows that several heads use count once.
    """
    used = used & rows.attended
    empty = ~any_of(used, -1)[..., None]
    if empty.any():
        largest = torch.zeros_like(rows.p, dtype=torch.bool)
        largest.scatter_(-1, rows.p.argmax(-1, keepdim=True), True)
        used = used | (empty & largest)
    weights = rows.p * used.float()
    kept_mass = weights.sum(-1)
    if residual == "renormalize":
        weights.mul_((rows.mass / kept_mass)[..., None])
    elif residual != "none":
        replaced = (rows.attended if residual == "mean" else rows.attended & ~used).float()
        dropped = (rows.mass - kept_mass).clamp(min=0.0) / replaced.sum(-1).clamp(min=1.0)
        weights.addcmul_(dropped[..., None], replaced)
    return Read(
        weights,
        v_rows=any_of(used, 0).sum(-1, dtype=torch.float32),
        k_rows=rows.lengths.float() if k_rows is None else k_rows,
        kept_mass=kept_mass,
    )


def softmax_over(rows: Rows, used: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over some keys alone: the others leave the denominator, too.

    Args:
        rows: the decode steps.
        used (Tensor[G, R, N], or [1, R, N] for all heads, bool): attended keys, at least one.

    Returns:
        tuple: weights [G, R, N], and the exact probability of the keys used [G, R].
    """
    weights = rows.p * used.float()
    kept_mass = weights.sum(-1)
    if rows.sinks is None and kept_mass.amin() > _LEAST_MASS:
        return weights.div_(kept_mass[..., None]), kept_mass
    hidden = torch.zeros(used.shape, device=used.device).masked_fill_(~used, -torch.inf)
    return rows.softmax(rows.scores(rows.tokens).add_(hidden)), kept_mass


def shared(used: Tensor) -> Tensor:
    """The rows that any head of the group wants, for all to use: bool [G, R, N] to [1, R, N]."""
    return any_of(used, 0)[None]


def any_of(mask: Tensor, dim: int) -> Tensor:
    """`mask.any(dim)` of a bool tensor; on a CPU many times as fast."""
    return mask.view(torch.uint8).amax(dim).view(torch.bool)


def largest(values: Tensor, count: Tensor) -> Tensor:
    """Which entries of values [..., R, N] are among the `count` [R] largest of their row: bool.

    Entries of -inf are never chosen.
    """
    num_entries = values.shape[-1]
    last = (num_entries - count).clamp(0, num_entries - 1)
    cut = ascending(values).gather(-1, last[:, None].expand(*values.shape[:-1], 1))
    return (values >= cut) & (values > -torch.inf)


def ascending(values: Tensor) -> Tensor:
    """`values.sort(-1).values`; on a CPU by numpy, whose vector instructions take a tenth."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(-1).values
