"""Attention over packed sequences: one function, its backends chosen in one place.

Sequences lie one after another in `[total_tokens, …]` tensors, with no padding between them.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro_core.errors import InputError
from virnucpro_core.models.ops import fused
from virnucpro_core.models.precision import HALF

_MASK_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
"""Bound on one additive mask of the padded backend, so that ALiBi does not fill the memory."""


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device; to a GPU from pinned memory, so that the host does not wait."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


@dataclass(frozen=True)
class Layout:
    """Where B packed sequences lie: sequence b has tokens [cu_seqlens[b], cu_seqlens[b + 1]).

    cu_seqlens: int32 (B + 1), on the tokens' device. max_seqlen: the longest sequence's tokens.
    tokens: all of them. These two are known to the host, so that nothing here waits for a GPU.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    tokens: int

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device) -> Layout:
        """From the sequences' token counts, int64 (B) on the CPU."""
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        longest = int(lengths.max()) if len(lengths) else 0
        return cls(to_device(cu_seqlens, device), longest, int(cu_seqlens[-1]))

    @property
    def sequences(self) -> int:
        return len(self.cu_seqlens) - 1

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each sequence, int64 (B)."""
        return self.cu_seqlens.diff().long()

    @cached_property
    def sequence_of(self) -> Tensor:
        """The sequence that each token belongs to, int64 (T)."""
        return torch.repeat_interleave(self.lengths, output_size=self.tokens)

    @cached_property
    def positions(self) -> Tensor:
        """Position of each token in its own sequence, from 0, int64 (T)."""
        starts = self.cu_seqlens[:-1].long()
        return torch.arange(self.tokens, device=starts.device) - starts[self.sequence_of]

    @cached_property
    def padded_rows(self) -> Tensor:
        """Row of each token in a padded (B·max_seqlen) layout, int64 (T)."""
        return self.sequence_of * self.max_seqlen + self.positions

    @cached_property
    def padding(self) -> Tensor | None:
        """Additive mask (B, 1, 1, max_seqlen), −inf on padding; None when there is none."""
        if self.tokens == self.sequences * self.max_seqlen:
            return None
        column = torch.arange(self.max_seqlen, device=self.lengths.device)
        hidden = (column >= self.lengths[:, None])[:, None, None]
        return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)


def alibi_slopes(heads: int) -> list[float]:
    """Slopes of ALiBi's distance penalty (Press et al. 2022), as MosaicBERT takes them.

    A power of two n has 2^(−8k/n), k = 1 … n; another number has those of the power below it, then
    every second one of the power above.
    """

    def power_of_two(n: int) -> list[float]:
        return [2 ** (-8 * k / n) for k in range(1, n + 1)]

    below = 2 ** math.floor(math.log2(heads))
    return power_of_two(below) + power_of_two(2 * below)[::2][: heads - below]


@dataclass(frozen=True)
class Rotary:
    """Rotary position embeddings (Su et al. 2021), base 10⁴: float32 (max_seqlen, d/2) each."""

    cos: Tensor
    sin: Tensor
    layout: Layout

    @classmethod
    def of(cls, layout: Layout, width: int) -> Rotary:
        """For heads of `width` values."""
        device = layout.cu_seqlens.device
        frequency = 1.0 / (10_000 ** (torch.arange(0, width, 2, device=device).float() / width))
        angle = torch.outer(torch.arange(layout.max_seqlen, device=device).float(), frequency)
        return cls(angle.cos(), angle.sin(), layout)

    @cached_property
    def half(self) -> tuple[Tensor, Tensor]:
        """Both in float16, whose step at 1 is the queries' own, and finer than bfloat16's."""
        return self.cos.half(), self.sin.half()

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Cosines of each token, twice, and its sines: (T, 1, d) and (T, 1, d/2)."""
        at = self.layout.positions
        return self.cos.repeat(1, 2)[at, None], self.sin[at, None]

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate (T, H, d) queries or keys by their positions, in their own dtype."""
        cos, sin = (t.to(x.dtype) for t in self.rows)
        half = x.shape[-1] // 2
        rotated = x * cos
        rotated[..., :half].addcmul_(x[..., half:], sin, value=-1)
        rotated[..., half:].addcmul_(x[..., :half], sin)
        return rotated


Positions = Rotary | Tensor | None
"""How attention knows positions: rotated, by ALiBi's slopes (float32 (H)), or not at all."""


def _rotated(q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
    if not isinstance(positions, Rotary):
        return q, k
    return positions.rotate(q), positions.rotate(k)


def _bias(positions: Positions, longest: int, dtype: torch.dtype) -> Tensor | None:
    """ALiBi's penalty of each pair of positions: (1, H, longest, longest); None without slopes."""
    if not isinstance(positions, Tensor):
        return None
    at = torch.arange(longest, device=positions.device)
    return (-positions[:, None, None] * (at[:, None] - at).abs()).to(dtype)[None]


class _Unpad(torch.autograd.Function):
    """Rows of a padded tensor, each taken once: its gradient needs no sum, unlike an index's."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.size = len(padded)
        return padded.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return _pad(grads[0], rows, ctx.size), None


def _pad(x: Tensor, rows: Tensor, size: int) -> Tensor:
    return x.new_zeros(size, *x.shape[1:]).index_copy(0, rows, x)


def _padded(q: Tensor, k: Tensor, v: Tensor, layout: Layout, positions: Positions) -> Tensor:
    """Masked SDPA, padded inside attention alone: any device, any dtype, any positions."""
    q, k = _rotated(q, k, positions)
    heads, width = q.shape[1:]
    longest, rows = layout.max_seqlen, layout.padded_rows
    size = layout.sequences * longest
    padded = _pad(torch.stack((q, k, v), 1).flatten(1), rows, size)
    q, k, v = padded.view(layout.sequences, longest, 3, heads, width).permute(2, 0, 3, 1, 4)
    bias = _bias(positions, longest, q.dtype)
    padding = None if layout.padding is None else layout.padding.to(q.dtype)
    mask_bytes = heads * longest**2 * q.element_size()
    room = _MASK_BYTES[q.device.type]
    step = max(1, room // mask_bytes) if bias is not None else layout.sequences
    out = []
    for b in range(0, layout.sequences, step):
        part = slice(b, b + step)
        mask = bias if padding is None else padding[part] if bias is None else bias + padding[part]
        out.append(F.scaled_dot_product_attention(q[part], k[part], v[part], attn_mask=mask))
    whole = torch.cat(out).transpose(1, 2).reshape(size, heads, width)
    return _Unpad.apply(whole, rows)  # type: ignore[no-any-return, no-untyped-call]


def _runs(q: Tensor, k: Tensor, v: Tensor, layout: Layout, positions: Positions) -> Tensor:
    """SDPA over each run of sequences of one length, where they lie: nothing is padded or copied.
    For the CPU, where a call costs little beside its work."""
    q, k = _rotated(q, k, positions)
    bias = _bias(positions, layout.max_seqlen, q.dtype)
    out, begin = [q[:0]], 0
    for length, run in groupby(filter(None, layout.lengths.tolist())):
        end = begin + length * len(list(run))
        q1, k1, v1 = (
            t[begin:end].view(-1, length, *t.shape[1:]).transpose(1, 2) for t in (q, k, v)
        )
        mask = None if bias is None else bias[..., :length, :length]
        mixed = F.scaled_dot_product_attention(q1, k1, v1, attn_mask=mask)
        out.append(mixed.transpose(1, 2).flatten(0, 1))
        begin = end
    return torch.cat(out)


def _varlen(q: Tensor, k: Tensor, v: Tensor, layout: Layout, positions: Positions) -> Tensor:
    """torch's packed flash attention: CUDA, fp16 or bf16, no bias."""
    from torch.nn.attention.varlen import varlen_attn

    q, k = _rotated(q, k, positions)
    cu, longest = layout.cu_seqlens, layout.max_seqlen
    out = varlen_attn(q, k, v, cu, cu, longest, longest)
    assert isinstance(out, Tensor)  # a tuple only when the log-sum-exp is asked for
    return out


def _triton(q: Tensor, k: Tensor, v: Tensor, layout: Layout, positions: Positions) -> Tensor:
    """Our kernel: CUDA, fp16 or bf16, made for many short sequences."""
    from virnucpro_core.models.kernels import attention

    rope = positions.half if isinstance(positions, Rotary) else None
    slopes = positions if isinstance(positions, Tensor) else None
    return attention(q, k, v, layout.cu_seqlens, layout.max_seqlen, rope, slopes)


BACKENDS = {"padded": _padded, "runs": _runs, "varlen": _varlen, "triton": _triton}


def backend(q: Tensor, positions: Positions) -> str:
    """The backend for these tensors; the environment's VIRNUCPRO_ATTENTION overrules."""
    forced = os.environ.get("VIRNUCPRO_ATTENTION")
    if forced:
        return forced
    if fused(q) and positions is not None and q.shape[2] <= 128:
        return "triton"
    if q.device.type == "cpu" and not torch.is_grad_enabled():
        return "runs"  # training's gradients take fewer, larger steps
    biased = isinstance(positions, Tensor)
    return "varlen" if q.is_cuda and q.dtype in HALF and not biased else "padded"


REVISION = 3
"""Raised whenever a change of the code changes values of embeddings beyond float32's rounding."""


def numerics() -> str:
    """What of the code and its switches decides the values of embeddings, as text.

    Raises InputError for a switch of the environment that is set to something unknown.
    """
    switches = {"VIRNUCPRO_ATTENTION": ("", *BACKENDS), "VIRNUCPRO_KERNELS": ("", "torch")}
    text = str(REVISION)
    for name, known in switches.items():
        value = os.environ.get(name, "")
        if value not in known:
            raise InputError(f"{name}={value} is not known; give one of {', '.join(known[1:])}.")
        text += f" {name}={value}" if value else ""
    return text


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, positions: Positions = None
) -> Tensor:
    """softmax(q·kᵀ/√d)·v inside each sequence, with no look at its neighbours: (T, H, d).

    q, k, v: (T, H, d), one dtype. Rotary positions rotate q and k first, ALiBi's slopes take
    slope·|i − j| off the scores.
    """
    return BACKENDS[backend(q, positions)](q, k, v, layout, positions)
