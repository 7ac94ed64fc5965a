"""The experts of one session in memory, as sources/expert_memory.cpp knows them: uses, and a limit for their bytes."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from msgspec import Struct

from qwonnx.runtime.errors import NativeKernelsError

_MAX_PARTS = 6
_ACCOUNT = 8


class ExpertPart(Struct, frozen=True):
    """A stacked weight of a layer's experts: the address of the first expert's share, and the bytes of each share."""

    address: int
    bytes_each: int


class ExpertLayer(Struct, frozen=True):
    """The experts of one layer: codes, scales and zero points of both matrices."""

    num_experts: int
    bytes_each: int
    parts: tuple[ExpertPart, ...]

    @property
    def num_bytes(self) -> int:
        return self.num_experts * self.bytes_each


class ExpertAccount(Struct, frozen=True):
    """Totals since the session was created.

    limit_bytes: of experts in memory; None: there is no limit, and the next two are 0.
    resident_bytes, most_resident_bytes: of experts that were asked for and not let go; now, and at most.
    needed: experts that a layer needed in a step, each counted once for the step.
    read, dropped: experts that were asked for, and let go.
    read_bytes: bytes of the former.
    """

    limit_bytes: int | None = None
    resident_bytes: int = 0
    most_resident_bytes: int = 0
    needed: int = 0
    read: int = 0
    dropped: int = 0
    read_bytes: int = 0


class ExpertMemory:
    """Of the nodes that ONNX Runtime creates while collect() is open; it outlives them."""

    def __init__(self, functions: Any) -> None:
        """
        Args:
            functions: the loaded library, see declare().

        Raises:
            NativeKernelsError: there is no memory.
        """
        self._functions = functions
        self._handle = functions.qwonnx_experts_new()
        if not self._handle:
            raise NativeKernelsError("there is no memory for the account of experts")
        weakref.finalize(self, functions.qwonnx_experts_release, self._handle)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Nodes that this thread creates meanwhile belong to this memory."""
        self._functions.qwonnx_experts_collect(self._handle)
        try:
            yield
        finally:
            self._functions.qwonnx_experts_collect(None)

    def layers(self) -> list[ExpertLayer]:
        """The layers with experts, in the order of the graph. Valid while the session lives."""
        found = []
        for index in range(self._functions.qwonnx_experts_num_layers(self._handle)):
            numbers = (ctypes.c_uint64 * (3 + 2 * _MAX_PARTS))()
            self._functions.qwonnx_experts_layer(self._handle, index, numbers)
            parts = (ExpertPart(numbers[3 + 2 * i], numbers[4 + 2 * i]) for i in range(numbers[2]))
            found.append(ExpertLayer(numbers[0], numbers[1], tuple(parts)))
        return found

    def num_experts(self) -> list[int]:
        """By layer."""
        return [layer.num_experts for layer in self.layers()]

    def uses(self) -> list[list[int]]:
        """How many tokens went to each expert, by layer; from any thread."""
        found = []
        for index, layer in enumerate(self.layers()):
            numbers = (ctypes.c_uint64 * layer.num_experts)()
            self._functions.qwonnx_experts_uses(self._handle, index, numbers)
            found.append(list(numbers))
        return found

    def expect(self, shares: Sequence[Sequence[float]]) -> None:
        """Begin as if experts had been needed by these shares of all tokens, by layer (0 to 1)."""
        for index, (layer, each) in enumerate(zip(self.layers(), shares, strict=True)):
            assert len(each) == layer.num_experts, "the caller compares them"
            self._functions.qwonnx_experts_expect(self._handle, index, (ctypes.c_double * len(each))(*each))

    def limit(self, num_bytes: int | None, *, can_ask: bool) -> bool:
        """Keep at most these bytes of experts in memory; None: no limit. From any thread.

        Every expert must lie in a mapped file: memory that no file stands behind would lose its content.

        Args:
            num_bytes: 0 lets an expert go as soon as another layer runs.
            can_ask: the process owns the files or may write them. Then the system tells what lies in memory, and
                experts that it took are asked for again.

        Returns:
            False if this system cannot do it.
        """
        most = 0 if num_bytes is None else max(1, num_bytes)
        return bool(self._functions.qwonnx_experts_limit(self._handle, most, int(can_ask)) == 1)

    def fill(self) -> bool:
        """Read the most used expert that is not in memory, and wait for it; False if no other one fits the limit."""
        return bool(self._functions.qwonnx_experts_fill(self._handle))

    def account(self) -> ExpertAccount:
        """From any thread."""
        numbers = (ctypes.c_uint64 * _ACCOUNT)()
        self._functions.qwonnx_experts_account(self._handle, numbers)
        limit, resident, most, needed, read, dropped, read_bytes, _ = numbers
        return ExpertAccount(limit or None, resident, most, needed, read, dropped, read_bytes)


def declare(functions: Any) -> None:
    """Give the library's functions their types.

    Raises:
        AttributeError: it has no such functions.
    """
    numbers, handle, size = ctypes.POINTER(ctypes.c_uint64), ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("new", handle, []),
        ("collect", None, [handle]),
        ("release", None, [handle]),
        ("num_layers", size, [handle]),
        ("layer", None, [handle, size, numbers]),
        ("uses", None, [handle, size, numbers]),
        ("expect", None, [handle, size, ctypes.POINTER(ctypes.c_double)]),
        ("limit", ctypes.c_int, [handle, ctypes.c_uint64, ctypes.c_int]),
        ("fill", ctypes.c_int, [handle]),
        ("account", None, [handle, numbers]),
    ):
        function = getattr(functions, f"qwonnx_experts_{name}")
        function.restype, function.argtypes = result, arguments
