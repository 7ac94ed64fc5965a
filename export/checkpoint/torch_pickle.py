"""The tensors that a PyTorch file's pickle describes, without running anything that it names.

A pickle is a program for a small stack machine, and its usual interpreter calls whatever the program names. This one
knows the few operations of a state dict. It builds texts, numbers, lists, dicts and descriptions of tensors; of the
program's functions it knows those that make a tensor, and describes what they would make. Any other name is refused.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_MAX_OPERATIONS = 20_000_000  # about 30 for a tensor
_MAX_DIMENSIONS = 8

# The storage classes, and safetensors' names of their types.
_STORAGES = {
    "BFloat16Storage": "BF16",
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "ShortStorage": "I16",
    "UntypedStorage": "U8",
}
# Types that a tensor of an untyped storage names.
_DTYPES = {
    "bfloat16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
}
_MAKES_DICT = ("collections", "OrderedDict")
_MAKES_SIZE = ("torch", "Size")
_MAKES_TENSOR = (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor_v3"))
_MAKES_PARAMETER = ("torch._utils", "_rebuild_parameter")


class PickleError(Exception):
    """The pickle does not describe a state dict. The message is only the reason; the caller completes the sentence."""


@dataclass(frozen=True, slots=True)
class DescribedTensor:
    """A tensor as its file describes it. dtype is safetensors' name; offset and strides count elements of it."""

    storage: str  # the name of the record with its values
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def is_contiguous(self) -> bool:
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


@dataclass(frozen=True, slots=True)
class _Name:
    """A function or class that the pickle names."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str


class _Mark:
    """Where a list of arguments begins on the stack."""


_MARK = _Mark()


def described_tensors(content: bytes) -> dict[str, Any]:
    """The state dict of a pickle: a DescribedTensor by name, or a value of another kind.

    Raises:
        PickleError: it is malformed, or names something else than a tensor's parts.
    """
    try:
        found = _Machine().run(content)
    except PickleError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise PickleError(f"its pickle is malformed: {type(error).__name__}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise PickleError("it holds something else than tensors by name")
    return found


class _Machine:
    """Runs the operations of a pickle on a stack."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
            if number > _MAX_OPERATIONS:
                raise PickleError(f"its pickle has more than {_MAX_OPERATIONS} operations")
            if operation.name == "STOP":
                return self._stack.pop()
            self._step(operation.name, argument)
        raise PickleError("its pickle has no end")

    def _step(self, operation: str, argument: Any) -> None:
        stack = self._stack
        match operation:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_MARK)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[operation])
            case "TUPLE":
                stack.append(tuple(self._marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(operation[-1]))]
                stack.append(tuple(reversed(items)))
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "APPEND" | "APPENDS":
                items = self._marked() if operation == "APPENDS" else [stack.pop()]
                _expect(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._marked() if operation == "SETITEMS" else [stack.pop(-2), stack.pop()]
                _expect(stack[-1], dict).update(_pairs(items))
            case "GLOBAL":
                stack.append(_Name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_Name(_expect(module, str), _expect(name, str)))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_made(_expect(function, _Name), _expect(arguments, tuple)))
            case "BUILD":
                stack.pop()  # what a module notes beside its state dict
                _expect(stack[-1], dict)
            case _:
                raise PickleError(f"its pickle has the operation {operation}, which a state dict has not")

    def _marked(self) -> list[Any]:
        """The values above the last mark, which they are taken from."""
        items = []
        while (value := self._stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]


def _expect(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise PickleError(f"its pickle has a {type(value).__name__} in the place of a {kind.__name__}")
    return value


def _pairs(items: list[Any]) -> Iterator[tuple[str | int, Any]]:
    if len(items) % 2:
        raise PickleError("its pickle has a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int):
            raise PickleError("its pickle has a key that is neither a text nor a number")
        yield key, value


def _storage(described: Any) -> _Storage:
    kind, cls, key, _, _ = _expect(described, tuple)
    if kind != "storage":
        raise PickleError(f"its pickle refers to a {str(kind)[:40]!r}")
    name = _expect(cls, _Name)
    module = "torch.storage" if name.name == "UntypedStorage" else "torch"
    if name.module != module or name.name not in _STORAGES:
        raise _refused(name)
    return _Storage(_expect(key, str), _STORAGES[name.name])


def _made(function: _Name, arguments: tuple[Any, ...]) -> Any:
    named = function.module, function.name
    if named == _MAKES_DICT and not arguments:
        return {}
    if named == _MAKES_SIZE:
        (sizes,) = arguments
        return tuple(sizes)
    if named == _MAKES_PARAMETER:
        return _expect(arguments[0], DescribedTensor)
    if named not in _MAKES_TENSOR:
        raise _refused(function)
    storage, offset, shape, strides = arguments[:4]
    sizes = (*_expect(shape, tuple), *_expect(strides, tuple))
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise PickleError(f"its pickle has a tensor of {len(shape)} dimensions and {len(strides)} strides")
    if not all(type(size) is int and 0 <= size < 1 << 62 for size in (*sizes, offset)):
        raise PickleError("its pickle has a tensor whose sizes are not numbers")
    dtype = _expect(storage, _Storage).dtype
    if function.name.endswith("_v3"):
        name = _expect(arguments[6], _Name)
        if name.module != "torch" or name.name not in _DTYPES:
            raise _refused(name)
        dtype = _DTYPES[name.name]
    elif any(arguments[6:]):
        raise PickleError("its pickle has a tensor that is negated or conjugated when it is read")
    return DescribedTensor(storage.key, dtype, shape, strides, offset)


def _refused(name: _Name) -> PickleError:
    return PickleError(f"its pickle names {f'{name.module}.{name.name}'[:120]!r}, which no tensor needs")
