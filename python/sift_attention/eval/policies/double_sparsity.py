"""Double Sparsity: keys ranked by their heavy channels in few bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .base import Policy, Read, Rows, largest
from .selected import attend_selected, share

_ELEMENT_BITS = 16


@dataclass(frozen=True)
class DoubleSparsity(Policy):
    """Reads the keys whose scores over their labels, the heavy channels in 2 bits, are largest.

    Heavy channels are those of largest mean |q_d k_d| over calibration tokens, each with its own
    key ("Method 1" of `config/offline_calibration.py`, channel "qk"). A label is quantised between
    its smallest and its largest element, as in the published `pseudo_quantize`; the query is
    not, since that would save no bytes. Every query head makes its own choice of keys, as in the
    published code; the group reads the union. No key is read for being new.

    The published code gives every query head channels, hence labels, of its own; with grouped
    queries that costs G times the bytes. Here a group shares channels, chosen by the mean over
    its heads.

    Bytes per attended key: 2 bits for each channel, and 2 elements for the label's range; then
    the chosen rows.

    Settings: half of the channels in 2 bits is the default of the published evaluations
    (group_factor 2, q_bits 2 in `perplexity_eval.py` and `longbench_ds.sh`) and measures far
    better here than the paper's 4 bits of a quarter of the channels, which are as many bytes. k is
    1/16 of the context in the paper. Its first two layers stay dense; here all are treated alike.

    Attributes:
        fraction: share of the attended keys that a query head reads.
        channel_fraction: share of the channels that a label keeps.
        bits: of a label's element.
    """

    source = "Yang et al., 2024, arXiv 2408.07092; code andy-yang-1/DoubleSparse"

    fraction: float
    channel_fraction: float = 0.5
    bits: int = 2
    channels: Mapping[tuple[int, int], Tensor] = field(
        default_factory=dict, repr=False, compare=False
    )

    def calibrate(self, observed: Mapping[tuple[int, int], Sequence[Rows]]) -> DoubleSparsity:
        """The policy with the heavy channels (int64 [r]) of every (layer, key/value head)."""
        return replace(
            self,
            channels={place: self._heavy(several) for place, several in observed.items()},
        )

    def read(self, rows: Rows) -> Read:
        """See Policy; the policy must be calibrated."""
        place = rows.layer, rows.head
        if place not in self.channels:
            raise ValueError(
                "DoubleSparsity.read: policy must be calibrated for "
                f"layer {rows.layer}, head {rows.head}"
            )
        channels = self.channels[place]
        labels = quantized(rows.k[:, channels], self.bits)
        estimate = rows.scores_of(rows.q[:, rows.start :, channels], labels, rows.tokens)
        used = largest(estimate, share(rows.lengths, self.fraction))
        label = (len(channels) * self.bits / _ELEMENT_BITS + 2.0) / rows.k.shape[1]
        return attend_selected(rows, used, summaries=label * rows.lengths)

    def _heavy(self, several: Sequence[Rows]) -> Tensor:
        num_channels = max(1, round(self.channel_fraction * several[0].k.shape[1]))
        products = torch.cat([(rows.q * rows.k).abs() for rows in several], dim=1)
        heavy: Tensor = products.mean((0, 1)).topk(num_channels).indices
        return heavy


def quantized(label: Tensor, bits: int) -> Tensor:
    """Labels [N, r] rounded to 2^bits levels from their own minimum to their own maximum."""
    low = label.amin(-1, keepdim=True)
    step = (label.amax(-1, keepdim=True) - low) / (2**bits - 1)
    levels = ((label - low) / step.masked_fill(step == 0.0, 1.0)).round()
    return torch.addcmul(low, levels, step)


FAMILIES = {"Double Sparsity": [DoubleSparsity(fraction) for fraction in (0.3, 0.1, 0.04, 0.012)]}
