"""Merging pieces of text into tokens by the native library, over a vocabulary in memory (sources/token_merging.cpp)."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Mapping
from typing import Any

from qwonnx.runtime.errors import NativeKernelsError

_SECTIONS = ("byte_ids", "starts", "text", "first_merges", "rights", "ranks", "results", "slots")
_COUNTS = ("num_tokens", "num_merges", "num_slots", "max_probes", "longest", "text_bytes")
_DAMAGED = -1


class _Vocabulary(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in _SECTIONS),
        *((name, ctypes.c_uint64) for name in _COUNTS),
    ]


class TokenMerging:
    """One vocabulary. Safe to use from several threads; releases the GIL.

    Args:
        functions: the loaded library, see declare().
        addresses: of the sections of vocabulary.bin by name. They must stay as long as this object.
        counts: of its header, by name.
    """

    def __init__(self, functions: Any, addresses: Mapping[str, int], counts: Mapping[str, Any]) -> None:
        self._merge = functions.qwonnx_tokens_merge
        self._vocabulary = _Vocabulary(
            **{name: addresses[name] for name in _SECTIONS}, **{name: counts[name] for name in _COUNTS}
        )

    def tokens(self, text: bytes, bounds: array[int]) -> array[int] | None:
        """The tokens of a text, uint32; None if the vocabulary is damaged.

        Args:
            text: UTF-8.
            bounds: uint32; of each piece the first character and the one after its last, ascending.

        Raises:
            NativeKernelsError: there is no memory.
        """
        made = array("I", bytes(4 * len(text)))
        count = self._merge(
            ctypes.byref(self._vocabulary), text, len(text), _address(bounds), len(bounds) // 2, _address(made)
        )
        if count == _DAMAGED:
            return None
        if count < 0:
            raise NativeKernelsError(f"there is no memory to merge {len(text)} bytes of text: send a shorter one")
        del made[count:]
        return made


def declare(functions: Any) -> None:
    """Give the library's function its types.

    Raises:
        AttributeError: it has no such function.
    """
    functions.qwonnx_tokens_merge.restype = ctypes.c_int64
    functions.qwonnx_tokens_merge.argtypes = [
        ctypes.POINTER(_Vocabulary),
        ctypes.c_char_p,
        ctypes.c_uint64,
        ctypes.c_void_p,
        ctypes.c_uint64,
        ctypes.c_void_p,
    ]


def _address(numbers: array[int]) -> int:
    return numbers.buffer_info()[0]
