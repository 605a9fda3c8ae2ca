"""Token ids: halves, the vocabulary, and whose fault a tokenizer is that can't be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from virnucpro_core.errors import ModelError, StoppedError
from virnucpro_core.models.store import Model
from virnucpro_core.sequences import tokens
from virnucpro_core.sequences.tokens import NucleotideTokenizer, Tokens


class PanicException(BaseException):
    """As a panic of Rust comes to Python: no Exception."""


def test_halves_part_the_sequences_and_their_ids() -> None:
    first, others = Tokens(np.arange(20), np.array([2, 3, 4, 5, 6])).halves()
    assert (first.ids.tolist(), first.lengths.tolist()) == ([0, 1, 2, 3, 4], [2, 3])
    assert (others.ids.tolist(), others.lengths.tolist()) == ([*range(5, 20)], [4, 5, 6])


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (Exception("no key"), ModelError),
        (PanicException("index out of bounds"), ModelError),
        (MemoryError(), StoppedError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("when", ["read", "used"])
def test_tokenizer_that_fails_is_the_model_s_fault_or_the_machine_s(
    tiny: Model,
    when: str,
    error: BaseException,
    raised: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = next(tiny.folder.rglob("tokenizer.json"))

    class Failing:
        def __init__(self, tokenizer: Any) -> None:
            self._tokenizer = tokenizer

        def __getattr__(self, name: str) -> Any:
            if name == ("no_padding" if when == "read" else "encode_batch_fast"):
                raise error
            return getattr(self._tokenizer, name)

    class Reading:
        @staticmethod
        def from_buffer(content: bytes) -> Failing:
            return Failing(Tokenizer.from_buffer(content))

    monkeypatch.setattr(tokens, "Tokenizer", Reading)
    with pytest.raises(raised) as caught:
        NucleotideTokenizer(path)
    if raised is not KeyboardInterrupt:
        assert str(caught.value).startswith(f"{path}: ")


def test_tokenizer_that_is_damaged_is_refused(tiny: Model, tmp_path: Path) -> None:
    text = next(tiny.folder.rglob("tokenizer.json")).read_text()
    damaged = tmp_path / "tokenizer.json"
    damaged.write_text(text[:-20])
    with pytest.raises(ModelError, match=r"no readable tokenizer .*; fetch the model again\.$"):
        NucleotideTokenizer(damaged)


def test_tokenizer_with_an_id_beyond_the_vocabulary_is_refused(tiny: Model) -> None:
    path = next(tiny.folder.rglob("tokenizer.json"))
    last = int(NucleotideTokenizer(path)(["ACGTN"]).ids.max())
    assert NucleotideTokenizer(path, last + 1)([]).ids.size == 0
    with pytest.raises(ModelError, match=f"no ids, or one beyond the encoder's {last};"):
        NucleotideTokenizer(path, last)
