"""RetroInfer: clusters of keys, the best read, the next estimated from their centroids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Policy, Read, Rows
from .selected import attend_selected, scaled, share


class Clusters(NamedTuple):
    """An index over the keys of one key/value head that grows while decoding.

    Attributes:
        of_key (Tensor[N], int64): cluster of every key; 0, which never exists, if in none.
        centroids (Tensor[C, D], float32): mean key of every cluster.
        since (Tensor[C], int64): attended keys from which on the cluster exists; N + 1 if never,
            as when no key is nearest to it.
    """

    of_key: Tensor
    centroids: Tensor
    since: Tensor


@dataclass(frozen=True)
class RetroInfer(Policy):
    """Three zones: steady keys and the best clusters exactly, more clusters by their centroids.

    The first keys and the newest ones are steady. The other keys are clustered: those of the
    prompt at once, later ones a segment at a time as they leave the window, steady until then.
    Clusters are ranked by the softmax of q . centroid over clusters, summed over the group
    (one choice for all its heads). The best are read. The next contribute through their
    centroid's score, their number of keys and their sum of value rows, as if all their keys
    had that score. The others are left out. As in the published code
    (`cache_hub/retroinfer_cache_gpu.py`, `kmeans.py`).

    Bytes: a row for every centroid, a row and an element (the size) for every estimated cluster,
    an element for every cluster read, then the rows of steady keys and clusters read.

    Settings: 16 keys per cluster, 23.2 % of the clusters estimated, 4 first keys and ten rounds
    of spherical k-means on centred keys are published. There a window is 64 keys, a
    segment 1024, and a prompt shorter than 16k is not indexed at all, for contexts of 128k; here
    a window is 8 keys and a segment 32, still the larger shares of contexts of 1k to 8k.

    Attributes:
        fraction: share of the clusters that is read.
        estimated: share of the clusters that is estimated.
        cluster_size: keys of a cluster, on average.
        num_first: steady keys at the beginning.
        window: newest keys that are steady; a segment waits in addition.
        segment: keys that are clustered together after the prompt.
    """

    source = "Chen et al., 2025, arXiv 2505.02922; code microsoft/RetrievalAttention"

    fraction: float
    estimated: float = 0.232
    cluster_size: int = 16
    num_first: int = 4
    window: int = 8
    segment: int = 32

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        clusters = self._clusters(rows)
        exists = clusters.since <= rows.lengths[:, None]  # [R, C]
        by_centroid = scaled(rows, rows.q[:, rows.start :] @ clusters.centroids.T)  # [G, R, C]
        among = by_centroid.masked_fill(~exists, -torch.inf).softmax(-1).sum(0)
        rank = among.masked_fill(~exists, -1.0).argsort(-1, descending=True).argsort(-1)
        num_clusters = exists.sum(-1)
        num_read = share(num_clusters, self.fraction)
        num_ranked = num_read + share(num_clusters, self.estimated, least=0)
        near = exists & (rank < num_read[:, None])
        middle = exists & ~near & (rank < num_ranked[:, None])

        # On a CPU gather takes a fraction of the time of an index.
        of_key = clusters.of_key.expand(*rows.attended.shape)
        steady = rows.attended & ~exists.gather(-1, of_key)
        used = (steady | near.gather(-1, of_key))[None]
        estimates = by_centroid.masked_fill(~middle, -torch.inf)
        estimates = estimates.gather(-1, of_key.expand(len(estimates), -1, -1))
        num_sizes = near.sum(-1) + middle.sum(-1)
        summaries = num_clusters + middle.sum(-1) + num_sizes / rows.k.shape[1]
        return attend_selected(rows, used, summaries, estimates)

    def _clusters(self, rows: Rows) -> Clusters:
        """Clusters of the prompt, then of every segment that leaves the window in time."""
        num_keys = rows.k.shape[0]
        first = min(self.num_first, rows.start)
        last = max(first, rows.start - self.window)
        segments = [(first, last, rows.start)] if last > first else []
        while last + self.segment + self.window <= num_keys:
            segments.append((last, last + self.segment, last + self.segment + self.window))
            last += self.segment
        of_key = torch.zeros(num_keys, dtype=torch.int64, device=rows.k.device)
        centroids, since = torch.zeros_like(rows.k[:1]), of_key.new_tensor([num_keys + 1])
        for begin, end, length in segments:
            means, nearest = spherical_kmeans(
                rows.k[begin:end], max(1, round((end - begin) / self.cluster_size))
            )
            of_key[begin:end] = len(centroids) + nearest
            empty = torch.bincount(nearest, minlength=len(means)) == 0
            centroids = torch.cat([centroids, means])
            since = torch.cat([since, torch.where(empty, num_keys + 1, length)])
        return Clusters(of_key, centroids, since)


def spherical_kmeans(k: Tensor, num_clusters: int, num_rounds: int = 10) -> tuple[Tensor, Tensor]:
    """Clusters of keys [M, D] by direction from their mean: means [C, D] and nearest, int64 [M].

    Starts from keys at even distances. The centroid of a cluster without keys stays as it was.
    """
    mean = k.mean(0)
    k = k - mean
    starts = (torch.arange(num_clusters, device=k.device) + 0.5) * (len(k) / num_clusters)
    centroids = k[starts.long()]
    for _ in range(num_rounds):
        nearest = (k @ torch.nn.functional.normalize(centroids, dim=-1).T).argmax(-1)
        sizes = torch.bincount(nearest, minlength=num_clusters)[:, None]
        sums = torch.zeros_like(centroids).index_add_(0, nearest, k)
        centroids = torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids)
    return centroids + mean, nearest


FAMILIES = {
    "RetroInfer-style clusters": [RetroInfer(fraction) for fraction in (0.6, 0.2, 0.08, 0.018)]
}
