"""Both encoders on one device, fed with batches of frames."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from virnucpro_core.embedding.prefetch import side_by_side
from virnucpro_core.embedding.schedule import Batch, Rows
from virnucpro_core.embedding.timing import Stages
from virnucpro_core.errors import GpuMemoryError, ModelError, VirNucProError
from virnucpro_core.models.dnabert_s import load_dnabert_s
from virnucpro_core.models.esm2 import load_esm2
from virnucpro_core.models.packing import plan
from virnucpro_core.models.precision import dtype_of
from virnucpro_core.models.store import Model
from virnucpro_core.sequences.tokens import ESM_SPECIAL_TOKENS, Tokens

logger = logging.getLogger("virnucpro.embed")

Embedded = tuple[Rows, NDArray[np.float32]]
"""Rows of the frame table, int64 (B), and their embeddings, float32 (B, dim)."""

CPU_TOKENS = 2048
"""Tokens of a batch on the CPU: its activations stay in a core's cache."""

GPU_TOKENS = 32_768
"""Tokens of a batch on a GPU: from here on a larger one is no faster."""

IN_FLIGHT = 2
"""Batches that a GPU has yet to finish while the next is launched."""


class FrameEncoder:
    """Nucleotide and protein encoder of a model, resident on one device.

    Raises ModelError when they do not load or do not give the model's number of values.
    """

    def __init__(self, model: Model, device: torch.device, precision: str) -> None:
        self.model, self.device, self.precision = model, device, precision
        dtype = dtype_of(precision)
        begun = time.perf_counter()
        torch.empty(0, device=device)  # a GPU's context is made with the first tensor on it
        there = time.perf_counter()
        self.nucleotide = load_dnabert_s(model.nucleotide, device=device, dtype=dtype)
        protein = load_esm2(model.protein, device=device, dtype=dtype)
        self.protein = protein.placed(device, precision)  # in fp8, quantized
        if self.nucleotide.dim + self.protein.dim != model.dim:
            raise ModelError(
                f"{model.folder}: its encoders do not give {model.dim} values; import again."
            )
        self._limit = self.token_budget()
        loaded = time.perf_counter()
        said = "%s: there in %.1f s, the weights in %.1f s"
        logger.debug(said, device, there - begun, loaded - there)

    def parameters(self) -> int:
        """How many both encoders have, in files of whatever precision."""
        encoders = self.nucleotide, self.protein
        return sum(weight.numel() for encoder in encoders for weight in encoder.parameters())

    def token_budget(self) -> int:
        """ESM-2 tokens of a batch: on a GPU as many as its free memory holds, a power of two.

        A layer has the residual stream, the normed rows, and the feed-forward's four times as wide
        rows at once; twice that leaves room for attention and for the other encoder.
        """
        if self.device.type == "cpu":
            return CPU_TOKENS
        free, _ = torch.cuda.mem_get_info(self.device)
        token_bytes = 2 * 8 * self.protein.dim * self.protein.dtype.itemsize
        fitting = max(1, int(0.8 * free) // token_bytes)
        return min(GPU_TOKENS, 1 << (fitting.bit_length() - 1))

    def tokenize(
        self, nucleotides: Sequence[str], proteins: Sequence[str]
    ) -> tuple[Tokens, Tokens]:
        """The tokens of frames, for each encoder."""
        return self.nucleotide.tokenize(nucleotides), self.protein.tokenize(proteins)

    def embed_frames(
        self, nucleotides: Sequence[str], proteins: Sequence[str]
    ) -> NDArray[np.float32]:
        """Embed frames that are in memory: float32 (N, dim), in input order."""
        lengths = np.fromiter(map(len, proteins), np.int64, len(proteins)) + ESM_SPECIAL_TOKENS
        batches = (
            Batch(rows, *self.tokenize([nucleotides[r] for r in rows], [proteins[r] for r in rows]))
            for rows in plan(lengths, self.token_budget())
        )
        result = np.empty((len(proteins), self.model.dim), np.float32)
        for rows, embedding in self.embed(batches, Stages()):
            result[rows] = embedding
        return result

    def _pooled(self, batch: Batch) -> Tensor:
        """Embeddings of a batch, float32 (B, dim) on the device; a GPU may not be done yet."""
        nucleotide = self.nucleotide.embed_tokens_packed(batch.nucleotide)
        protein = self.protein.embed_tokens_packed(batch.protein)
        return torch.cat((nucleotide, protein), dim=1)

    def embed(self, batches: Iterable[Batch], stages: Stages) -> Iterator[Embedded]:
        """Embed batches, in order. On the CPU each core has a batch of its own.

        That needs no barrier within a batch, which keeps its speed where cores are shared. Raises
        VirNucProError for a value that is not finite, GpuMemoryError for a frame that the GPU's
        memory cannot hold.
        """
        if self.device.type == "cpu":
            results = self._embed_on_cpu(batches, stages)
        else:
            results = self._embed_on_gpu(batches, stages)
        for rows, embedding in results:
            if not np.isfinite(embedding).all():
                raise VirNucProError(
                    f"{self.model.name} in {self.precision} gives values that are not finite; "
                    "choose another --precision."
                )
            yield rows, embedding

    def _embed_on_cpu(self, batches: Iterable[Batch], stages: Stages) -> Iterator[Embedded]:
        def compute(batch: Batch) -> Embedded:
            with stages("compute"):
                return batch.rows, self._pooled(batch).numpy()

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from side_by_side(compute, batches, threads)
        finally:
            torch.set_num_threads(threads)

    def _embed_on_gpu(self, batches: Iterable[Batch], stages: Stages) -> Iterator[Embedded]:
        """Launch a batch while the GPU has others to do, and copy results out beside them."""
        pending: deque[tuple[Rows, Tensor, torch.Event]] = deque()

        def finish() -> Embedded:
            rows, host, copied = pending.popleft()
            with stages("wait for the GPU"):
                copied.synchronize()
            return rows, host.numpy()

        for batch in batches:
            with stages("launch"):
                for rows, pooled in self._launch(batch):
                    host = torch.empty(pooled.shape, pin_memory=True)
                    host.copy_(pooled, non_blocking=True)
                    copied = torch.cuda.current_stream(self.device).record_event()
                    pending.append((rows, host, copied))
            while len(pending) > IN_FLIGHT:
                yield finish()
        while pending:
            yield finish()

    def _launch(self, batch: Batch) -> list[tuple[Rows, Tensor]]:
        """Embed a batch in as many parts as the memory asks for; a limit once found stays."""
        tokens = len(batch.protein.ids)
        if tokens <= self._limit or len(batch.rows) == 1:
            try:
                return [(batch.rows, self._pooled(batch))]
            except torch.OutOfMemoryError:
                if len(batch.rows) == 1:
                    raise GpuMemoryError(
                        f"{self.device}: out of memory with one frame of {tokens} tokens; "
                        "use a GPU with more memory, or --devices cpu."
                    ) from None
            torch.cuda.empty_cache()
            self._limit = tokens // 2
            logger.warning(
                "%s: out of memory with %d tokens; on with %d", self.device, tokens, self._limit
            )
        return [part for half in batch.halves() for part in self._launch(half)]
