"""Muon: momentum whose every step is replaced by the nearest orthogonal matrix.

torch.optim.Muon does the same arithmetic matrix by matrix in bfloat16, which takes 15 times longer
on a CPU without bfloat16 units. Here equal shapes are orthogonalised together, in float32.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonalize(matrices: Tensor) -> Tensor:
    """Five Newton-Schulz steps towards U V^T of each matrix U S V^T in [M, rows <= cols, cols]."""
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315) @ x
    return x


class Muon:
    """Optimises weight matrices; call `step(lr)` after backward and it clears the gradients."""

    def __init__(
        self, matrices: Iterable[Tensor], momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        self.momentum = momentum
        self.weight_decay = weight_decay
        groups: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for matrix in matrices:
            rows, cols = matrix.shape
            groups[min(rows, cols), max(rows, cols)].append(matrix)
        self._groups = [(g, torch.zeros(len(g), *shape)) for shape, g in groups.items()]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for matrices, momentum in self._groups:
            gradients = torch.stack([_wide(matrix.grad) for matrix in matrices])
            momentum.lerp_(gradients, 1 - self.momentum)
            updates = orthogonalize(gradients.lerp(momentum, self.momentum))
            for matrix, update in zip(matrices, updates, strict=True):
                rows, cols = matrix.shape
                matrix.mul_(1 - lr * self.weight_decay)
                matrix.add_(
                    update.mT if rows > cols else update, alpha=-lr * max(1.0, rows / cols) ** 0.5
                )
                matrix.grad = None


def _wide(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.mT if gradient.shape[0] > gradient.shape[1] else gradient
