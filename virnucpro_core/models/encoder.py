"""What the two encoders share: pooled embeddings of a list of sequences."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from virnucpro_core.errors import InputError
from virnucpro_core.models.attention import Layout
from virnucpro_core.models.packing import plan
from virnucpro_core.models.precision import PRECISIONS, check_precision, dtype_of
from virnucpro_core.sequences.tokens import Tokens


class Encoder(nn.Module, ABC):
    """Sequences to one vector each: tokenise, run packed, average over tokens."""

    dim: int

    @abstractmethod
    def tokenize(self, sequences: Sequence[str]) -> Tokens:
        """Token ids of the sequences, one after another."""

    @abstractmethod
    def forward(self, ids: Tensor, layout: Layout) -> Tensor:
        """Hidden states (T, dim), in the module's dtype; ids: int64 (T) on the CPU, packed."""

    @abstractmethod
    def pool(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Mean over each sequence's tokens as the original takes it: float32 (B, dim)."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @torch.inference_mode()
    def embed_tokens_packed(self, tokens: Tokens) -> Tensor:
        """Pooled embeddings, float32 (B, dim) on the module's device, of one packed batch."""
        gpu = self.device.type == "cuda"
        # kernels launch on the current device, whatever their tensors lie on
        with torch.cuda.device(self.device) if gpu else nullcontext():
            layout = Layout.of(torch.from_numpy(tokens.lengths), self.device)
            return self.pool(self(torch.from_numpy(tokens.ids), layout), layout)

    @property
    def precision(self) -> str:
        """Name of the precision that the encoder is in."""
        # bf16 stands before fp8, whose dtype it shares
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)

    def to_fp8(self) -> Self:
        """Quantize in place what the encoder can run in e4m3: nothing, unless it says otherwise."""
        return self

    def placed(self, device: str | torch.device, precision: str) -> Self:
        """Move the encoder, in place, to a device and a precision.

        Raises InputError for a precision that is unknown, that the device lacks, or that cannot be
        reached any more: what is quantized stays so.
        """
        check_precision(precision, torch.device(device))
        if self.precision == "fp8":
            if precision != "fp8":
                raise InputError("this encoder is in fp8 already; load it again for more.")
            return self.to(device=device)
        self.to(device=device, dtype=dtype_of(precision))
        return self.to_fp8() if precision == "fp8" else self

    def embed(
        self,
        sequences: Sequence[str],
        *,
        device: str | torch.device | None = None,
        precision: str | None = None,
        token_budget: int = 8192,
    ) -> NDArray[np.float32]:
        """Embed sequences: float32 (N, dim), in input order, pooled as the original pools.

        device and precision ("fp32", "bf16", "fp16", "fp8") default to where and as the module is;
        others use a copy of it. Raises InputError for a sequence that the tokeniser refuses.
        """
        # an empty tensor knows which device "cuda" is; a copy is only made for another one
        target = self.device if device is None else torch.empty(0, device=device).device
        precision = precision or self.precision
        if (target, precision) != (self.device, self.precision):
            moved = copy.deepcopy(self).placed(target, precision)
            return moved.embed(sequences, token_budget=token_budget)
        result = np.empty((len(sequences), self.dim), np.float32)
        # a few letters make a token in the one encoder, one letter in the other
        for rows in plan(np.fromiter(map(len, sequences), np.int64, len(sequences)), token_budget):
            tokens = self.tokenize([sequences[row] for row in rows])
            result[rows] = self.embed_tokens_packed(tokens).cpu().numpy()
        return result
