"""What one layer of one sequence batch needs to sift: its power law, V sum and counters."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import ops
from .attended import AttendedKeys
from .calibration import Calibration
from .config import SiftConfig
from .counters import Counters
from .law import PowerLaw
from .rows import BatchRows, is_recorded, mark_static
from .value_sum import ValueSum


class SiftState(BatchRows):
    """Decode state of one attention layer for one batch of sequences.

    Call `observe` after every dense forward of several tokens and `decode` for every forward of one
    token, both with the cache as it is after the new tokens joined it; follow every change of the
    cache with `reorder`, `select`, `repeat`, `crop` or `reset`. From one call to the next each
    sequence keeps its attended keys and gains those of the new tokens; where `decode` finds more or
    fewer than one new key, that sequence decodes exactly until the next `observe`. A prompt whose
    first query attends itself only begins a new sequence, with a new fit and warm-up.

    A call that raises, or is interrupted, may be repeated: law and samples change as a whole or not
    at all, and the sum is taken anew.

    Nothing waits for the device. Tensors keep their addresses while the batch size stays, so steps
    can be compiled and captured in CUDA graphs; call `allocate` before tracing.

    Args:
        config: what to do; None: the defaults.

    Attributes:
        config (SiftConfig): as given; `skip_layers` is the caller's business.
        counters (Counters): what the decode steps did.
        log_alpha (Tensor[B, HQ], float32): natural log of the law's alpha; -inf: no fit, exact.
        beta (Tensor[B, HQ], float32): the law's exponent.
        values (ValueSum): running sum of the attended value rows. A NaN or Inf in any of them
            reaches it, and through it the mean residual.

    Example:
        >>> state = SiftState(SiftConfig(min_keys=0))
        >>> q, k, v = torch.randn(3, 1, 2, 100, 32)
        >>> state.observe(q[:, :, :99], k[:, :, :99], v[:, :, :99])
        >>> state.decode(q[:, :, 99], k, v).shape
        torch.Size([1, 2, 32])
    """

    ROW_TENSORS = ("log_alpha", "beta", "_exact")

    def __init__(self, config: SiftConfig | None = None) -> None:
        self.config = config or SiftConfig()
        self.is_allocated = False
        self._is_decoding = False  # all sequences do, as far as the host knows
        self._is_warm = self.config.warmup_steps == 0  # as far as the host knows
        self._steps_seen = 0

    def allocate(
        self,
        batch: int,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        counters: Counters | None = None,
    ) -> None:
        """Create the tensors; `observe` and `decode` do it when they come first.

        Args:
            batch: B.
            num_q_heads: HQ.
            num_kv_heads: HK.
            head_dim: D.
            dtype: of keys and values.
            device: device of the layer.
            counters: totals to add to; None: new ones.
        """
        heads = (batch, num_q_heads)
        law = PowerLaw.exact()
        if self.config.threshold == "uniform":
            law = PowerLaw.uniform(self.config.c)
        with torch.inference_mode(False):
            self.log_alpha = torch.full(heads, float(law.log_alpha), device=device)
            self.beta = torch.full(heads, float(law.beta), device=device)
            self._exact = torch.full(heads, -math.inf, device=device)
            self._step = torch.zeros(1, dtype=torch.int64, device=device)
        mark_static(self.log_alpha, self.beta, self._exact, self._step)
        self.values = ValueSum(batch, num_kv_heads, head_dim, device)
        self.counters = counters or Counters(
            num_q_heads, num_kv_heads, head_dim * dtype.itemsize, device
        )
        self._calibration: Calibration | None = None
        if self.config.threshold == "quantile":
            self._calibration = Calibration(self.config, *heads, device)
        self.is_allocated = True

    def observe(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | AttendedKeys | None = None,
        *,
        scale: float | None = None,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
    ) -> None:
        """Take note of a dense forward: sum V, sample the prompt, fit the law.

        Args:
            q (Tensor[B, HQ, R, D]): the new queries.
            k (Tensor[B, HK, N, D]): keys, the new ones included.
            v (Tensor[B, HK, N, D]): values, the new ones included.
            mask (Tensor[1 or B, 1, R, N], bool, AttendedKeys or None): keys that each query
                attends; None: query i of a cache that began empty attends keys 0..i.
            scale: factor of the scores; None: 1/sqrt(D).
            softcap: 0, or the cap of the scores.
            sinks (Tensor[HQ] or None): sink logits.
        """
        self._belong_to(q, k, v)
        attended = AttendedKeys.of(mask, q.shape[0], q.shape[2], k)
        self.values.is_stale = True
        if self._calibration is not None:
            scale = 1.0 / math.sqrt(q.shape[3]) if scale is None else scale
            sinks = None if sinks is None else sinks.float()
            self._calibration.sample_prompt(q, k, attended, scale, softcap, sinks)
            self._is_decoding = False
            self._calibration.is_decoding.logical_and_(~attended.begins)
            renew = ~self._calibration.is_decoding
            self._fit(self._calibration, attended.count, renew, attended.begins)
        if self.config.warmup_steps > 0:
            self._is_warm, self._steps_seen = False, 0  # it may be: the device knows
            self._step.masked_fill_(attended.begins.all(), 0)
        self.values.take(v, attended)

    def decode(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | AttendedKeys | None = None,
        *,
        scale: float | None = None,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """One sifted decode step.

        Args:
            q (Tensor[B, HQ, D], dtype and D as `sift_attention.decode` takes): the new queries.
            k (Tensor[B, HK, N, D]): keys, the new one included.
            v (Tensor[B, HK, N, D]): values, the new one included.
            mask (Tensor[1 or B, 1, 1, N], bool, AttendedKeys or None): attended keys; None: all.
            scale: factor of the scores; None: 1/sqrt(D).
            softcap: 0, or the cap of the scores.
            sinks (Tensor[HQ] or None): sink logits.
            active (Tensor[B], bool, or None): rows that the counters count; None: all.

        Returns:
            Tensor[B, HQ, D]: contiguous, in q's dtype.
        """
        scale = 1.0 / math.sqrt(q.shape[2]) if scale is None else scale
        sinks = None if sinks is None else sinks.float()
        self._belong_to(q, k, v)
        if mask is None and k.shape[2] == 1 and not is_recorded(q):
            self.reset()
        try:
            attended: AttendedKeys | int
            is_warm = self._is_warm and (self.config.warmup_steps == 0 or not is_recorded(q))
            if mask is None and active is None and is_warm and not is_recorded(q):
                # The host knows every length: no mask arithmetic on the device.
                attended, key_mask = k.shape[2], None
                self.values.add_newest(v)
                log_alpha = self._exact if attended < self.config.min_keys else self.log_alpha
            else:
                attended = AttendedKeys.of(mask, q.shape[0], 1, k)
                key_mask = attended.key_mask
                sifts = attended.at_least(self.config.min_keys)
                covered = self.values.add_attended(v, attended)
                if covered is not None:
                    sifts = covered.logical_and_(sifts)
                if not is_warm:
                    sifts = sifts & (self._step >= self.config.warmup_steps)
                log_alpha = torch.where(sifts, self.log_alpha, self._exact)
            out, lse, kept_mass, num_loaded = ops.call(
                ops.DECODE,
                "decode",
                q,
                k if k.stride(3) == 1 else k.contiguous(),
                v if v.stride(3) == 1 else v.contiguous(),
                log_alpha,
                self.beta,
                scale,
                None,
                key_mask,
                self.values.total,
                ops.RESIDUALS[self.config.residual],
                softcap,
                sinks,
                None,
            )
            self.counters.add(attended, lse, kept_mass, num_loaded, sinks, active)
            if isinstance(attended, AttendedKeys) and not is_warm:
                self._warm_up(q, k, attended, scale, softcap, sinks)
            if self._calibration is not None and (is_recorded(q) or not self._is_decoding):
                self._calibration.is_decoding.fill_(True)
                self._is_decoding = True
            return out  # type: ignore[no-any-return]
        except BaseException:  # interrupts, too
            self.values.is_stale = True
            raise

    def reorder(self, rows: Tensor) -> None:
        """Row b becomes row rows[b] (Tensor[B], int64), in place: a step of beam search."""
        self._map_all(lambda tensor: tensor.index_select(0, rows.to(tensor.device)))

    def select(self, rows: Tensor) -> None:
        """Keep these rows (Tensor, int64 indices or bool [B])."""
        self._map_all(lambda tensor: tensor[rows.to(tensor.device)])

    def repeat(self, repeats: int) -> None:
        """Repeat every row `repeats` times in place: 0, 0, 1, 1, ..."""
        self._map_all(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def crop(self, num_keys: int) -> None:
        """Follow a cache that lost its newest `num_keys` keys.

        A fit that was made when there were more keys than are left is made again from the samples
        that are left, or is gone.

        Raises:
            ValueError: `num_keys` is negative.
        """
        if num_keys < 0:
            raise ValueError(f"SiftState.crop: num_keys must not be negative, got {num_keys}")
        if self.is_allocated and num_keys > 0:
            self.values.crop(num_keys)
            if self._calibration is not None:
                self._calibration.crop(self.values.count, (self.log_alpha, self.beta))
                self._count_unfitted(self._calibration)

    def crop_to(self, length: int) -> None:
        """Follow a cache that was cropped to `length` keys, wherever this state has got to."""
        if self.is_allocated:
            self.values.is_stale = True
            self.crop(max(0, self.values.num_keys - length))

    def reset(self) -> None:
        """Return to an empty cache, in place. Counters stay."""
        if not self.is_allocated:
            return
        self.values.reset()
        self._step.zero_()
        self._is_decoding = False
        self._is_warm, self._steps_seen = self.config.warmup_steps == 0, 0
        if self._calibration is not None:
            self._calibration.zero_rows()
            self.log_alpha.fill_(-math.inf)
            self.beta.zero_()

    def skip(self, reason: str, q: Tensor, v: Tensor) -> None:
        """Take note of a forward that ran dense, without this state; count it if a decode step.

        Args:
            reason: one of `counters.DENSE_REASONS`.
            q (Tensor[B, HQ, R, D]): the queries.
            v (Tensor[B, HK, N, D]): values.
        """
        self._allocate_for(q, v)
        self.values.is_stale = True
        if q.shape[2] == 1:
            self.counters.add_dense(reason)

    def _allocate_for(self, q: Tensor, v: Tensor) -> None:
        if not self.is_allocated:
            batch, num_kv_heads, _, head_dim = v.shape
            self.allocate(batch, q.shape[1], num_kv_heads, head_dim, v.dtype, v.device)

    def _belong_to(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Allocate for these tensors, or refuse them if they belong to another state."""
        of_q, of_k, of_v = q.shape, k.shape, v.shape  # once, as asking takes a good part of a step
        if not len(of_k) == len(of_v) == 4 or of_v[:3] != of_k[:3] or of_q[0] != of_k[0]:
            raise ValueError(
                "SiftState: k and v must have shape [B, HK, N, D] with the batch of q, got "
                f"{tuple(of_k)}, {tuple(of_v)} and {tuple(of_q)}"
            )
        num_q_heads, num_kv_heads = of_q[1], of_k[1]
        if num_kv_heads == 0 or num_q_heads == 0 or num_q_heads % num_kv_heads != 0:
            raise ValueError(
                "SiftState: the heads of q must be a positive multiple of the heads of k, "
                f"got {num_q_heads} and {num_kv_heads}"
            )
        self._allocate_for(q, v)
        sizes = (*self.log_alpha.shape, *self.values.sums.shape[1:])
        got = (of_q[0], num_q_heads, num_kv_heads, of_v[3])
        if got != sizes:
            raise ValueError(
                f"SiftState: q and v must have the state's [B, HQ, HK, D] = {sizes}, got {got}"
            )
        if q.device != self.log_alpha.device:
            raise ValueError(
                f"SiftState: q must be on the state's device {self.log_alpha.device}, "
                f"got {q.device}"
            )

    def _fit(
        self,
        calibration: Calibration,
        count: Tensor,
        renew: Tensor,
        lost: Tensor | None = None,
    ) -> None:
        calibration.fit(count, (self.log_alpha, self.beta), renew, lost)
        self._count_unfitted(calibration)

    def _count_unfitted(self, calibration: Calibration) -> None:
        self.counters.unfitted.copy_((~calibration.fitted).sum())

    def _warm_up(
        self,
        q: Tensor,
        k: Tensor,
        attended: AttendedKeys,
        scale: float,
        softcap: float,
        sinks: Tensor | None,
    ) -> None:
        """Sample an exact step, and fit after the last one."""
        if self._calibration is not None:
            self._calibration.sample_step(self._step, q, k, attended, scale, softcap, sinks)
            is_last = self._step == self.config.warmup_steps - 1
            self._fit(self._calibration, attended.count, renew=is_last)
        self._step.add_(1)
        if not is_recorded(q):
            self._steps_seen += 1
            self._is_warm = self._steps_seen >= self.config.warmup_steps

    def _map_all(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.is_allocated:
            self.map_rows(change)
            self.values.map_rows(change)
            if self._calibration is not None:
                self._calibration.map_rows(change)
