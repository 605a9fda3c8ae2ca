"""GEMMs in e4m3 by cuBLASLt, with what torch's `_scaled_mm` leaves out: GELU, e4m3 results, sums.

The library is the one that torch has loaded.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_float, c_int, c_int8, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from virnucpro_core.errors import InputError

WORKSPACE = 32 << 20
"""Bytes, what NVIDIA advises for Hopper."""

# of cublasLt.h: types, attributes of a product, epilogues
_COMPUTE_32F, _R_32F = 68, 0
_TYPES = {torch.bfloat16: 14, torch.float8_e4m3fn: 28}
_TRANSPOSE_A, _EPILOGUE, _BIAS_POINTER, _OUT_SCALE, _FAST_SUMS, _BIAS_TYPE = 3, 7, 8, 20, 25, 26
_NOTHING, _BIAS, _GELU = 1, 4, 32
_MAX_WORKSPACE = 1


class _Heuristic(ctypes.Structure):
    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(f"libcublasLt.so.{str(torch.version.cuda).partition('.')[0]}")


def _call(name: str, *arguments: Any) -> None:
    if status := getattr(_library(), f"cublasLt{name}")(*arguments):
        raise InputError(
            f"fp8 does not run on this GPU: cublasLt{name} failed with status {status}; "
            "choose another --precision."
        )


class _Made:
    """A descriptor of cuBLASLt's, destroyed with this object."""

    def __init__(self, kind: str, *arguments: Any) -> None:
        self.kind, self.handle = kind, c_void_p()
        _call(f"{kind}Create", byref(self.handle), *arguments)

    def set(self, attribute: int, value: Any) -> None:
        size = c_size_t(ctypes.sizeof(value))
        _call(f"{self.kind}SetAttribute", self.handle, attribute, byref(value), size)

    def __del__(self) -> None:
        _call(f"{self.kind}Destroy", self.handle)


@cache
def _handle(device: torch.device) -> c_void_p:
    handle = c_void_p()
    _call("Create", byref(handle))
    return handle


def _matrix(x: Tensor, dtype: torch.dtype) -> _Made:
    """A row-major tensor, which cuBLASLt takes for a column-major transpose."""
    rows, columns = x.shape
    return _Made("MatrixLayout", _TYPES[dtype], c_uint64(columns), c_uint64(rows), c_int64(columns))


def gemm(
    rows: Tensor,
    weight: Tensor,
    factor: float,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    gelu: bool = False,
    scale: Tensor | None = None,
    add: bool = False,
) -> Tensor:
    """out = act(factor · rows @ weightᵀ + bias) · scale, or with add out += that: (T, D').

    rows (T, D), weight (D', D): e4m3, contiguous, D and D' multiples of 16. bias: bfloat16 (D').
    gelu: act is GELU in its tanh form, else nothing. out: bfloat16 without a scale, or e4m3 with
    one, float32 (1), what is too large becoming the largest. Raises InputError where cuBLASLt
    has no such GEMM.
    """
    matmul = _Made("MatmulDesc", _COMPUTE_32F, _R_32F)
    matmul.set(_TRANSPOSE_A, c_int(1))
    matmul.set(_FAST_SUMS, c_int8(1))
    epilogue = _GELU * gelu
    if bias is not None:
        epilogue |= _BIAS
        matmul.set(_BIAS_POINTER, c_void_p(bias.data_ptr()))
        matmul.set(_BIAS_TYPE, c_int(_TYPES[bias.dtype]))
    matmul.set(_EPILOGUE, c_int(epilogue or _NOTHING))
    if scale is not None:
        matmul.set(_OUT_SCALE, c_void_p(scale.data_ptr()))
    a, b, d = (_matrix(x, x.dtype) for x in (weight, rows, out))
    c = _matrix(out, torch.bfloat16)
    preference = _Made("MatmulPreference")
    preference.set(_MAX_WORKSPACE, c_size_t(WORKSPACE))
    found, best = c_int(), _Heuristic()
    handle = _handle(rows.device)
    _call("MatmulAlgoGetHeuristic", handle, matmul.handle, a.handle, b.handle, c.handle, d.handle,
          preference.handle, 1, byref(best), byref(found))  # fmt: skip
    workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device=rows.device)
    alpha, beta = c_float(factor), c_float(add)
    at = [c_void_p(x.data_ptr()) for x in (weight, rows, out, workspace)]
    stream = c_void_p(torch.cuda.current_stream(rows.device).cuda_stream)
    _call("Matmul", handle, matmul.handle, byref(alpha), at[0], a.handle, at[1], b.handle,
          byref(beta), at[2] if add else None, c.handle, at[2], d.handle,
          byref(best.algorithm), at[3], c_size_t(WORKSPACE), stream)  # fmt: skip
    return out
