"""How fast this machine's CPU embeds, found out by embedding a little."""

from __future__ import annotations

import time

import numpy as np
import torch

from virnucpro_core.embedding.encoders import CPU_TOKENS, FrameEncoder
from virnucpro_core.models.store import Model
from virnucpro_core.sequences.tokens import ESM_SPECIAL_TOKENS

RESIDUES = 160
"""Of a made-up frame, about as many as a window of 500 gives."""


def cpu_tokens_a_second(model: Model, precision: str) -> float:
    """ESM-2 tokens a second that both encoders would embed on all cores, if nothing else ran.

    One batch is timed on one core, by its CPU time, which the load of the machine does not change.
    """
    encoder = FrameEncoder(model, torch.device("cpu"), precision)
    rng = np.random.default_rng(0)
    frames = CPU_TOKENS // (RESIDUES + ESM_SPECIAL_TOKENS)
    nucleotides, proteins = (
        ["".join(rng.choice(list(letters), length)) for _ in range(frames)]
        for letters, length in (("ACGT", 3 * RESIDUES + 1), ("LAGVSERTIDPKQNFYMHWC", RESIDUES))
    )
    encoder.embed_frames(nucleotides[:1], proteins[:1])  # what the first batch alone costs
    start = time.process_time()
    encoder.embed_frames(nucleotides, proteins)
    seconds = time.process_time() - start
    return torch.get_num_threads() * frames * (RESIDUES + ESM_SPECIAL_TOKENS) / seconds
