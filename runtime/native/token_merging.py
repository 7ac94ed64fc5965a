"""Text into tokens by the native library, over a vocabulary in memory (sources/token_merging.cpp)."""

from __future__ import annotations

import ctypes
import enum
from array import array
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

_SECTIONS = (
    *("byte_ids", "starts", "text", "first_merges", "rights", "ranks", "results", "slots"),
    *("class_blocks", "classes"),
)
_COUNTS = ("num_tokens", "num_merges", "num_slots", "max_probes", "longest", "text_bytes", "num_class_blocks")


class _Vocabulary(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in _SECTIONS),
        *((name, ctypes.c_uint64) for name in _COUNTS),
    ]


class Outcome(enum.Enum):
    """What became of a text. DAMAGED: the vocabulary is, or the bounds are not those of the text."""

    MERGED = 0
    DAMAGED = -1
    NO_MEMORY = -2
    LONG_PIECE = -3


class Merged(Struct, frozen=True):
    """tokens: uint32, empty unless the outcome is MERGED."""

    outcome: Outcome
    tokens: array[int]


class TokenMerging:
    """One vocabulary. Safe to use from several threads; releases the GIL.

    Args:
        functions: the loaded library, see declare().
        addresses: of the sections of vocabulary.bin by name. They must stay as long as this object.
        counts: of its header, by name.
    """

    def __init__(self, functions: Any, addresses: Mapping[str, int], counts: Mapping[str, Any]) -> None:
        self._functions = functions
        self._vocabulary = _Vocabulary(
            **{name: addresses[name] for name in _SECTIONS}, **{name: counts[name] for name in _COUNTS}
        )
        self._reference = ctypes.byref(self._vocabulary)

    def merge(self, text: bytes, bounds: array[int]) -> Merged:
        """The tokens of a text that was cut.

        Args:
            text: UTF-8.
            bounds: uint32; of each piece the first character and the one after its last, ascending.
        """
        made = array("I", bytes(4 * len(text)))
        count = self._functions.qwonnx_tokens_merge(
            self._reference, text, len(text), _address(bounds), len(bounds) // 2, _address(made)
        )
        return _merged(made, count)

    def encode(self, text: bytes) -> Merged:
        """The tokens of a text that is cut as Qwen 3.5's pre-tokenizer does; the vocabulary must have classes.

        Args:
            text: UTF-8, normalised.
        """
        made = array("I", bytes(4 * len(text)))
        count = self._functions.qwonnx_tokens_encode(self._reference, text, len(text), _address(made))
        return _merged(made, count)


def declare(functions: Any) -> None:
    """Give the library's functions their types.

    Raises:
        AttributeError: it has no such functions.
    """
    text = (ctypes.POINTER(_Vocabulary), ctypes.c_char_p, ctypes.c_uint64)
    functions.qwonnx_tokens_merge.argtypes = [*text, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p]
    functions.qwonnx_tokens_encode.argtypes = [*text, ctypes.c_void_p]
    functions.qwonnx_tokens_merge.restype = functions.qwonnx_tokens_encode.restype = ctypes.c_int64


def _merged(made: array[int], count: int) -> Merged:
    if count < 0:
        return Merged(Outcome(count), array("I"))
    del made[count:]
    return Merged(Outcome.MERGED, made)


def _address(numbers: array[int]) -> int:
    return numbers.buffer_info()[0]
