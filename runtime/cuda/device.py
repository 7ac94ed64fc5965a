"""One CUDA device: its memory, pinned memory of the host, and one stream that does everything in order.

The functions are those of libcudart, which ONNX Runtime's CUDA provider loads anyway, called by ctypes. The package
cuda-bindings would be 31 MB more for the same dozen calls. A graph of Gather and ScatterND nodes would launch a kernel
for each state and copy into buffers of its own, where one two-dimensional copy moves the keys of all heads of a row.

Source: the CUDA Runtime API reference, 13.0 (docs.nvidia.com/cuda/cuda-runtime-api).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from qwonnx.runtime.cuda.libraries import check_driver
from qwonnx.runtime.errors import SessionError, SettingsError

HostArray = np.ndarray[Any, np.dtype[Any]]

# CUDA 13's, the one that onnxruntime-gpu 1.31 and 1.32 are built for.
_LIBRARIES = ("libcudart.so.13", "cudart64_13.dll")
_STREAM_NON_BLOCKING = 1
_OUT_OF_MEMORY = 2
_PROPERTIES_BYTES, _NAME_BYTES = 8192, 256  # room for a cudaDeviceProp, which begins with the name
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # of cudaDeviceAttr


class CopyKind(IntEnum):
    """From where to where: values of cudaMemcpyKind."""

    TO_DEVICE = 1
    TO_HOST = 2
    ON_DEVICE = 3


@dataclass(frozen=True, slots=True)
class Block:
    """`height` rows of `width` bytes; a row begins `pitch` bytes after the one before it."""

    address: int
    pitch: int


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """Bytes of the device's memory: those that are free for any process, and all."""

    free_bytes: int
    total_bytes: int


class DeviceMemory:
    """Memory of a device. It is given back when the object goes.

    Attributes:
        address: of the first byte; 256 divides it.
        num_bytes: as asked for.
    """

    def __init__(self, device: CudaDevice, address: int, num_bytes: int) -> None:
        self.address, self.num_bytes = address, num_bytes
        self._device = device

    def __del__(self) -> None:
        self._device.free(self.address)


class _PinnedMemory:
    """Host memory that a device reads and writes by itself; numpy keeps it as the base of an array."""

    def __init__(self, device: CudaDevice, address: int, num_bytes: int) -> None:
        self._device, self._address = device, address
        self.__array_interface__ = {"version": 3, "shape": (num_bytes,), "typestr": "|u1", "data": (address, False)}

    def __del__(self) -> None:
        self._device.free_pinned(self._address)


class CudaDevice:
    """A device and its stream. For one thread at a time, and from any thread.

    Args:
        index: of the device, as nvidia-smi counts them, unless CUDA_VISIBLE_DEVICES says otherwise.

    Attributes:
        index: as given.
        stream: address of the cudaStream_t on which all calls of this object are queued.
        compute_capability: such as 9.0, as (9, 0).
        name: as the driver has it, "NVIDIA H200".

    Raises:
        SettingsError: there is no CUDA library, no driver, an older driver, or no such device.
    """

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self._library = _load()
        check_driver()
        self._threads = threading.local()  # those whose current device this is
        self._check_device()
        stream = ctypes.c_void_p()
        self._open("cudaStreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(_STREAM_NON_BLOCKING))
        assert stream.value is not None
        self.stream: int = stream.value
        self.compute_capability = (
            self._attribute(_COMPUTE_CAPABILITY_MAJOR),
            self._attribute(_COMPUTE_CAPABILITY_MINOR),
        )
        self.name = self._name()

    def current(self) -> int:
        """The device that this thread's calls go to: index, once this object was used here."""
        device = ctypes.c_int()
        self._call("cudaGetDevice", ctypes.byref(device))
        return device.value

    def memory(self) -> MemoryInfo:
        """The device's memory now."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return MemoryInfo(free.value, total.value)

    def allocate(self, num_bytes: int) -> DeviceMemory:
        """Memory of the device, zeroed.

        Raises:
            MemoryError: there is not so much left.
        """
        address = self._allocated("cudaMalloc", num_bytes)
        memory = DeviceMemory(self, address, num_bytes)
        self.clear(Block(address, num_bytes), num_bytes, 1)
        return memory

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> HostArray:
        """An array of zeros in pinned memory of the host.

        Raises:
            MemoryError: the system does not pin so much.
        """
        kind = np.dtype(dtype)
        num_bytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        address = self._allocated("cudaMallocHost", num_bytes)
        array: HostArray = np.asarray(_PinnedMemory(self, address, num_bytes))
        array[...] = 0
        return array.view(kind).reshape(tuple(shape))

    def copy(self, kind: CopyKind, target: Block, source: Block, width: int, height: int = 1) -> None:
        """Queue a copy of `height` rows of `width` bytes.

        Memory of the host must stay until synchronize(), and is read or written then at the latest. Source and target
        do not overlap.
        """
        self._call(
            "cudaMemcpy2DAsync",
            ctypes.c_void_p(target.address),
            ctypes.c_size_t(target.pitch),
            ctypes.c_void_p(source.address),
            ctypes.c_size_t(source.pitch),
            ctypes.c_size_t(width),
            ctypes.c_size_t(height),
            ctypes.c_int(kind),
            ctypes.c_void_p(self.stream),
        )

    def clear(self, target: Block, width: int, height: int = 1) -> None:
        """Queue zeros for `height` rows of `width` bytes of the device's memory."""
        self._call(
            "cudaMemset2DAsync",
            ctypes.c_void_p(target.address),
            ctypes.c_size_t(target.pitch),
            ctypes.c_int(0),
            ctypes.c_size_t(width),
            ctypes.c_size_t(height),
            ctypes.c_void_p(self.stream),
        )

    def synchronize(self) -> None:
        """Wait until everything in the stream is done.

        Raises:
            SessionError: something that was queued has failed.
        """
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))

    def free(self, address: int) -> None:
        """Give back an allocation; DeviceMemory calls it. Errors are of earlier work, which reports them itself."""
        self._library.cudaFree(ctypes.c_void_p(address))

    def free_pinned(self, address: int) -> None:
        self._library.cudaFreeHost(ctypes.c_void_p(address))

    def _check_device(self) -> None:
        count = ctypes.c_int()
        self._open("cudaGetDeviceCount", ctypes.byref(count))
        if not 0 <= self.index < count.value:
            known = "there is one, cuda:0" if count.value == 1 else f"there are {count.value}, cuda:0 and so on"
            raise SettingsError(f"device cuda:{self.index} does not exist: {known}")
        self._open("cudaSetDevice", ctypes.c_int(self.index))
        self._threads.is_current = True

    def _attribute(self, attribute: int) -> int:
        value = ctypes.c_int()
        self._open("cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(self.index))
        return value.value

    def _name(self) -> str:
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self._open("cudaGetDeviceProperties", properties, ctypes.c_int(self.index))
        return properties.raw[:_NAME_BYTES].partition(b"\0")[0].decode(errors="replace")

    def _allocated(self, function: str, num_bytes: int) -> int:
        self._make_current()
        address = ctypes.c_void_p()
        status = getattr(self._library, function)(ctypes.byref(address), ctypes.c_size_t(max(num_bytes, 1)))
        if status == _OUT_OF_MEMORY:
            self._library.cudaGetLastError()  # it would show again in another call
            raise MemoryError(f"cuda:{self.index} has no {num_bytes} bytes left")
        self._check(function, status)
        assert address.value is not None
        return address.value

    def _open(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            self._library.cudaGetLastError()  # it would show again in another call
            raise SettingsError(f"device cuda:{self.index} cannot be used: {self._text(status)}")

    def _make_current(self) -> None:
        """A thread begins with device 0."""
        if not getattr(self._threads, "is_current", False):
            self._check("cudaSetDevice", self._library.cudaSetDevice(ctypes.c_int(self.index)))
            self._threads.is_current = True

    def _call(self, function: str, *arguments: object) -> None:
        self._make_current()
        self._check(function, getattr(self._library, function)(*arguments))

    def _check(self, function: str, status: int) -> None:
        if status:
            raise SessionError(f"cuda:{self.index} failed in {function}: {self._text(status)}")

    def _text(self, status: int) -> str:
        name, text = self._library.cudaGetErrorName(status), self._library.cudaGetErrorString(status)
        return f"{text.decode()} ({name.decode()})"


def _load() -> ctypes.CDLL:
    """The CUDA runtime: the one that ONNX Runtime has loaded, else the system's.

    Raises:
        SettingsError: there is none.
    """
    reasons = []
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError as error:
            reasons.append(str(error))
            continue
        library.cudaGetErrorName.restype = library.cudaGetErrorString.restype = ctypes.c_char_p
        return library
    raise SettingsError(
        f"CUDA's runtime library cannot be loaded ({reasons[0]}): install the extra gpu, which brings it, and NVIDIA's"
        " driver"
    )
