"""Damage that a file of JSON may have, and what its readers may make of it."""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from virnucpro_core.errors import VirNucProError

DEEP = b"[" * 100_000
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 1.5, float("nan"), float("inf"), 300_000, 10**30),
    *("", "x", "7", "\0", "../x", "/etc/passwd", "\ud800", "é" * 300),
    *([], [1], ["a", "b"], {}, {"a": 1}),
)
"""What stands in a value's place: every other type of JSON, and numbers and texts beyond bounds."""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """TimeoutError, at the line that hangs, for what takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(kind: type[VirNucProError], use: Callable[[], object]) -> str:
    """What came of it: `used`, or `refused` in one sentence; all else is an error of the test."""
    try:
        with at_most(20):
            use()
    except kind as refusal:
        sentence = str(refusal)
        assert sentence.endswith("."), sentence
        assert "\n" not in sentence, sentence
        assert len(sentence) < 1000, sentence
        return "refused"
    return "used"


def _places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in a JSON document, but of lists as long as a vocabulary."""
    yield above
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        if isinstance(inner, dict | list) and len(inner) < 20:
            yield from _places(inner, (*above, key))
        else:
            yield (*above, key)


def damaged_json(content: bytes, odds: tuple[Any, ...] = ODD) -> Iterator[bytes]:
    """A JSON file with each value replaced or left out, and with its bytes cut or of no JSON."""
    whole = json.loads(content)
    for place in _places(whole):
        for odd in (*odds, ...):
            document = copy.deepcopy(whole)
            inner = document
            for key in place[:-1]:
                inner = inner[key]
            if odd is ...:
                if place:
                    del inner[place[-1]]
            elif place:
                inner[place[-1]] = odd
            else:
                document = odd
            yield json.dumps(document).encode()
    yield from (b"", b"{", b"\xff\xfe\x00", DEEP, b'{"a":' * 100_000, b"1" * 6000, content[:-3])
