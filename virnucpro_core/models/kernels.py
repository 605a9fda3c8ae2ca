"""Triton kernels of the encoders on a GPU in half precision; `ops` and `attention` choose them.

Each makes one pass over memory and works in float32 in between. A row of `DIM` values is held in
registers as two pieces, each a power of two (2560 = 2048 + 512), as Triton's tiles must be.
Nothing is specialised on token counts, so a model compiles each kernel once.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from virnucpro_core.models.precision import NORM_SCALE

LOG2_E = math.log2(math.e)
BLOCK = 64
"""Keys in one tile of attention, and queries: the rows of one Hopper matrix instruction."""
RESIDENT_BLOCKS = 4
"""Blocks of keys that stay on the chip while a program goes through a sequence's queries."""

RESIDENT = {"QUERIES": BLOCK, "num_warps": 4, "num_stages": 1, "maxnreg": 128}
"""Few registers, so that programs enough share a multiprocessor to hide each other's loads."""
STREAMING = {"QUERIES": 2 * BLOCK, "num_warps": 4, "num_stages": 3}
"""Twice the queries to a block of keys, which are rotated before; loads run ahead."""
NORM_WARPS = 2


@triton.jit
def _halves(x, at, live, cos, sin, stride, WIDTH: tl.constexpr, HALF: tl.constexpr,
            ROPE: tl.constexpr):  # fmt: skip
    """Both halves of one head's rows `at`, rotated by their positions."""
    column = tl.arange(0, HALF)[None, :]
    keep = live[:, None] & (column < WIDTH // 2)
    here = x + at[:, None] * stride + column
    first = tl.load(here, keep, 0.0)
    dtype = first.dtype
    first = first.to(tl.float32)
    second = tl.load(here + WIDTH // 2, keep, 0.0).to(tl.float32)
    if ROPE:
        c = tl.load(cos + at[:, None] * (WIDTH // 2) + column, keep, 0.0).to(tl.float32)
        s = tl.load(sin + at[:, None] * (WIDTH // 2) + column, keep, 0.0).to(tl.float32)
        first, second = first * c - second * s, second * c + first * s
    return first.to(dtype), second.to(dtype)


@triton.jit
def _attend(q1, q2, k1, k2, value, at, keys, length, factor, slope, top, total, mixed,
            ROPE: tl.constexpr, FIRST: tl.constexpr):  # fmt: skip
    """Take one block of keys into a running softmax: its maximum, its sum, the mixed values.

    Scores are not scaled until they are an exponent, where that costs nothing.
    """
    scores = tl.dot(q2, tl.trans(k2), tl.dot(q1, tl.trans(k1)))
    if not ROPE:
        scores -= slope * tl.abs(at[:, None] - keys[None, :]).to(tl.float32)
    scores = tl.where((keys < length)[None, :], scores, -float("inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    shift = higher * factor
    weight = tl.exp2(scores * factor - shift[:, None])
    if not FIRST:
        shrink = tl.exp2(top * factor - shift)
        total *= shrink
        mixed *= shrink[:, None]
    total += tl.sum(weight, 1)
    return higher, total, tl.dot(weight.to(value.dtype), value, mixed)


@triton.jit
def _attention(q, k, v, out, cu_seqlens, cos, sin, slopes, factor, stride, key_stride,
               HEADS: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
               BLOCK: tl.constexpr, BLOCKS: tl.constexpr, QUERIES: tl.constexpr,
               ROPE: tl.constexpr):  # fmt: skip
    """One head of one sequence. Up to BLOCKS blocks of keys are rotated once and kept; with
    BLOCKS = 0, for longer sequences, a program takes one block of queries and streams the keys,
    which are rotated already."""
    head = tl.program_id(1)
    start = tl.load(cu_seqlens + tl.program_id(2))
    length = tl.load(cu_seqlens + tl.program_id(2) + 1) - start
    place = start.to(tl.int64) * stride + head * WIDTH
    q += place
    k += start.to(tl.int64) * key_stride + head * WIDTH
    v += place
    out += start.to(tl.int64) * (HEADS * WIDTH) + head * WIDTH
    block = tl.arange(0, BLOCK)
    column = tl.arange(0, 2 * HALF)[None, :]
    slope = 0.0
    if not ROPE:
        slope = tl.load(slopes + head) * 1.4426950408889634 / factor  # log2(e)

    first = tl.program_id(0) * QUERIES
    last = tl.minimum(first + QUERIES, length)
    k1s, k2s, vs = (), (), ()
    if BLOCKS > 0:
        last = length
        for b in tl.static_range(BLOCKS):
            keys = b * BLOCK + block
            k1, k2 = _halves(k, keys, keys < length, cos, sin, key_stride, WIDTH, HALF, ROPE)
            live = (keys < length)[:, None] & (column < WIDTH)
            k1s, k2s = k1s + (k1,), k2s + (k2,)
            vs = vs + (tl.load(v + keys[:, None] * stride + column, live, 0.0),)

    for begin in range(first, last, QUERIES):
        at = begin + tl.arange(0, QUERIES)
        q1, q2 = _halves(q, at, at < length, cos, sin, stride, WIDTH, HALF, ROPE)
        top = tl.full((QUERIES,), -float("inf"), tl.float32)
        total = tl.zeros((QUERIES,), tl.float32)
        mixed = tl.zeros((QUERIES, 2 * HALF), tl.float32)
        if BLOCKS > 0:
            for b in tl.static_range(BLOCKS):
                top, total, mixed = _attend(
                    q1, q2, k1s[b], k2s[b], vs[b], at, b * BLOCK + block, length, factor, slope,
                    top, total, mixed, ROPE, b == 0,
                )  # fmt: skip
        else:
            for begin_keys in range(0, length, BLOCK):
                keys = begin_keys + block
                k1, k2 = _halves(k, keys, keys < length, cos, sin, key_stride, WIDTH, HALF, False)
                live = (keys < length)[:, None] & (column < WIDTH)
                value = tl.load(v + keys[:, None] * stride + column, live, 0.0)
                top, total, mixed = _attend(
                    q1, q2, k1, k2, value, at, keys, length, factor, slope,
                    top, total, mixed, ROPE, False,
                )  # fmt: skip
        result = (mixed * (1.0 / total)[:, None]).to(out.dtype.element_ty)
        live = (at < length)[:, None] & (column < WIDTH)
        tl.store(out + at[:, None] * (HEADS * WIDTH) + column, result, live)


@triton.jit
def _rotate(x, out, cu_seqlens, cos, sin, stride,
            HEADS: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
            PADDED: tl.constexpr):  # fmt: skip
    """All heads of one token, rotated by its position."""
    at = tl.program_id(0)
    row = tl.load(cu_seqlens + tl.program_id(1)).to(tl.int64) + at
    if row < tl.load(cu_seqlens + tl.program_id(1) + 1):
        head, column = tl.arange(0, PADDED)[:, None], tl.arange(0, HALF)[None, :]
        inside = column < WIDTH // 2
        keep = (head < HEADS) & inside
        place = head * WIDTH + column
        here = x + row * stride + place
        first = tl.load(here, keep, 0.0).to(tl.float32)
        second = tl.load(here + WIDTH // 2, keep, 0.0).to(tl.float32)
        c = tl.load(cos + at * (WIDTH // 2) + column, inside, 0.0).to(tl.float32)
        s = tl.load(sin + at * (WIDTH // 2) + column, inside, 0.0).to(tl.float32)
        there = out + row * (HEADS * WIDTH) + place
        tl.store(there, (first * c - second * s).to(out.dtype.element_ty), keep)
        tl.store(there + WIDTH // 2, (second * c + first * s).to(out.dtype.element_ty), keep)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    rope: tuple[Tensor, Tensor] | None,
    slopes: Tensor | None,
) -> Tensor:
    """Attention inside each packed sequence, with rotary positions or ALiBi: (T, H, d).

    q, k, v: (T, H, d), views into one QKV output. rope: cosines and sines, float16
    (max_seqlen, d/2). slopes: float32 (H).
    """
    tokens, heads, width = q.shape
    out = q.new_empty(tokens, heads, width)
    blocks = triton.cdiv(max_seqlen, BLOCK)
    resident = blocks <= RESIDENT_BLOCKS
    cos, sin = rope or (cu_seqlens, cu_seqlens)
    launch = RESIDENT if resident else STREAMING
    tiles = 1 if resident else triton.cdiv(max_seqlen, STREAMING["QUERIES"])
    sizes = {"HEADS": heads, "WIDTH": width, "HALF": max(16, triton.next_power_of_2(width // 2))}
    if rope is not None and not resident:
        rotated = torch.empty_like(out)
        _rotate[(max_seqlen, len(cu_seqlens) - 1)](
            k, rotated, cu_seqlens, cos, sin, k.stride(0),
            PADDED=triton.next_power_of_2(heads), **sizes,
        )  # fmt: skip
        k = rotated
    _attention[(tiles, heads, len(cu_seqlens) - 1)](
        q, k, v, out, cu_seqlens, cos, sin, cu_seqlens if slopes is None else slopes,
        LOG2_E / math.sqrt(width), q.stride(0), k.stride(0),
        BLOCK=BLOCK, BLOCKS=blocks if resident else 0, ROPE=rope is not None, **sizes, **launch,
    )  # fmt: skip
    return out


@triton.jit
def _piece(x, at, dim: tl.constexpr):
    return tl.load(x + at, at < dim, 0.0).to(tl.float32)


@triton.jit
def _layer_norm(x, owed, weight, bias, out, eps, factor,
                DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
                OWED: tl.constexpr, AFFINE: tl.constexpr):  # fmt: skip
    """One row: x (+ owed), normed (affine), times a factor."""
    row = tl.program_id(0)
    x += row.to(tl.int64) * DIM
    out += row.to(tl.int64) * DIM
    a, b = tl.arange(0, MAIN), MAIN + tl.arange(0, REST)
    xa, xb = _piece(x, a, DIM), _piece(x, b, DIM)
    if OWED:
        xa += _piece(owed, a, DIM)
        xb += _piece(owed, b, DIM)
    mean = (tl.sum(xa, 0) + tl.sum(xb, 0)) / DIM
    xa = tl.where(a < DIM, xa - mean, 0.0)
    xb = tl.where(b < DIM, xb - mean, 0.0)
    variance = (tl.sum(xa * xa, 0) + tl.sum(xb * xb, 0)) / DIM
    rescale = factor * tl.rsqrt(variance + eps)
    xa *= rescale
    xb *= rescale
    if AFFINE:
        xa = xa * _piece(weight, a, DIM) + _piece(bias, a, DIM)
        xb = xb * _piece(weight, b, DIM) + _piece(bias, b, DIM)
    tl.store(out + a, xa.to(out.dtype.element_ty), a < DIM)
    tl.store(out + b, xb.to(out.dtype.element_ty), b < DIM)


def _pieces(dim: int) -> dict[str, int]:
    """A row as MAIN + REST, both powers of two."""
    main = triton.next_power_of_2(dim + 1) // 2
    return {"DIM": dim, "MAIN": main, "REST": triton.next_power_of_2(max(16, dim - main))}


def layer_norm(
    x: Tensor,
    owed: Tensor | None,
    affine: tuple[Tensor, Tensor] | None,
    eps: float,
) -> Tensor:
    """LayerNorm of x + owed over the last axis, (T, D) → (T, D) in x's dtype.

    owed: float (D), added to every row but not stored. Without an affine map the result is e4m3,
    times NORM_SCALE.
    """
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn if affine is None else x.dtype)
    weight, bias = affine or (x, x)
    _layer_norm[(len(x),)](
        x,
        x if owed is None else owed,
        weight,
        bias,
        out,
        eps,
        NORM_SCALE if affine is None else 1.0,
        **_pieces(x.shape[1]),
        OWED=owed is not None,
        AFFINE=affine is not None,
        num_warps=NORM_WARPS,
    )
    return out


@triton.jit
def _gated_gelu(x, out, DIM: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    gate = _piece(x + row * 2 * DIM, at, DIM)
    value = _piece(x + row * 2 * DIM + DIM, at, DIM)
    gelu = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(out + row * DIM + at, (gelu * value).to(out.dtype.element_ty), at < DIM)


def gated_gelu(x: Tensor) -> Tensor:
    """gelu(first half) · second half of each row, exact GELU: (T, 2·D) → (T, D)."""
    out = x.new_empty(len(x), x.shape[1] // 2)
    dim = out.shape[1]
    tile = min(1024, triton.next_power_of_2(dim))
    _gated_gelu[(len(x), triton.cdiv(dim, tile))](x, out, DIM=dim, TILE=tile, num_warps=4)
    return out


@triton.jit
def _segment_mean(x, begin, count, out, DIM: tl.constexpr, TILE: tl.constexpr):
    segment = tl.program_id(0)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    rows = tl.load(count + segment)
    x += tl.load(begin + segment).to(tl.int64) * DIM
    total = tl.zeros((TILE,), tl.float32)
    for _ in range(rows):
        total += _piece(x, at, DIM)
        x += DIM
    mean = total / tl.maximum(rows, 1).to(tl.float32)
    tl.store(out + segment.to(tl.int64) * DIM + at, mean, at < DIM)


def segment_mean(x: Tensor, begin: Tensor, count: Tensor) -> Tensor:
    """Mean of the rows [begin, begin + count) of x (T, D), in float32 and in order: (B, D)."""
    dim = x.shape[1]
    out = x.new_empty(len(begin), dim, dtype=torch.float32)
    tile = min(256, triton.next_power_of_2(dim))
    _segment_mean[(len(begin), triton.cdiv(dim, tile))](
        x, begin, count, out, DIM=dim, TILE=tile, num_warps=1
    )
    return out
