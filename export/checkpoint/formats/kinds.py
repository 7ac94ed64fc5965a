"""The kinds of quantised weights that a format may have, by the names of their tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.formats import bitsandbytes, float8, gptq, integers, nvfp4
from qwonnx.export.checkpoint.formats.awq import SUFFIXES, AwqWeight, awq_shape
from qwonnx.export.checkpoint.formats.awq_config import AwqFormat
from qwonnx.export.checkpoint.formats.bitsandbytes import TableWeight
from qwonnx.export.checkpoint.formats.bitsandbytes_config import BitsAndBytesFormat
from qwonnx.export.checkpoint.formats.compressed_tensors import CompressedFormat
from qwonnx.export.checkpoint.formats.float8 import Float8Weight
from qwonnx.export.checkpoint.formats.float8_config import Fp8Format
from qwonnx.export.checkpoint.formats.gptq import GptqWeight
from qwonnx.export.checkpoint.formats.gptq_config import GptqFormat
from qwonnx.export.checkpoint.formats.integers import IntegerWeight
from qwonnx.export.checkpoint.formats.modelopt_config import ModelOptFormat
from qwonnx.export.checkpoint.formats.nvfp4 import Nvfp4Weight
from qwonnx.export.checkpoint.formats.source_quantization import SourceQuantization

QuantizedWeight = AwqWeight | Float8Weight | GptqWeight | IntegerWeight | Nvfp4Weight | TableWeight

_WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class StoredKind:
    """Tensors that store one weight together. Their names have one stem, and different endings.

    sign is the ending of the tensor that marks such weights; main that of the tensor with the codes, which has this
    dtype unless that is None; weight that of the logical name. If is_known_by_dtype, a tensor of this dtype without its
    companions is such a weight too, whose opening says what is missing.
    """

    sign: str
    main: str
    weight: str
    companions: tuple[str, ...]
    shape: Callable[[Checkpoint, str], tuple[int, ...]]  # of the weight, from its stem
    open: Callable[[Checkpoint, str, tuple[int, ...]], QuantizedWeight]
    dtype: str | None = None
    is_known_by_dtype: bool = False


def kinds_of(quantization: SourceQuantization | None) -> tuple[StoredKind, ...]:
    """The kinds that a format has; the first that fits a tensor is its kind."""
    match quantization:
        case Fp8Format():
            return (_float8(float8.INVERSE_SUFFIX),)
        case GptqFormat():
            return (_gptq(quantization),)
        case AwqFormat():
            return (_awq(quantization),)
        case CompressedFormat():
            packed = _nvfp4(nvfp4.PACKED_SUFFIX, nvfp4.GLOBAL_SUFFIX), _packed(quantization)
            return (*packed, _bytes(quantization), _float8(float8.SCALE_SUFFIX))
        case ModelOptFormat():
            return (_nvfp4(_WEIGHT, nvfp4.MODELOPT_GLOBAL_SUFFIX), _float8(float8.SCALE_SUFFIX))
        case BitsAndBytesFormat():
            return (_TABLE, _ROW_SCALED)
    return ()


def _float8(suffix: str) -> StoredKind:
    def opened(checkpoint: Checkpoint, stem: str, shape: tuple[int, ...]) -> QuantizedWeight:
        return Float8Weight.open(checkpoint, stem, suffix, shape)

    shape = float8.float8_shape
    return StoredKind(suffix, "", "", (suffix,), shape, opened, float8.DTYPE, is_known_by_dtype=True)


def _gptq(stored: GptqFormat) -> StoredKind:
    return StoredKind(
        sign=gptq.CODES_SUFFIX,
        main=gptq.CODES_SUFFIX,
        weight=_WEIGHT,
        companions=gptq.SUFFIXES,
        shape=partial(gptq.gptq_shape, stored=stored),
        open=partial(GptqWeight.open, stored=stored),
    )


def _awq(stored: AwqFormat) -> StoredKind:
    return StoredKind(SUFFIXES[0], SUFFIXES[0], _WEIGHT, SUFFIXES, awq_shape, partial(AwqWeight.open, stored=stored))


def _nvfp4(codes: str, whole: str) -> StoredKind:
    def shape(checkpoint: Checkpoint, stem: str) -> tuple[int, ...]:
        return nvfp4.nvfp4_shape(checkpoint, stem + codes)

    def opened(checkpoint: Checkpoint, stem: str, shape: tuple[int, ...]) -> QuantizedWeight:
        return Nvfp4Weight.open(checkpoint, stem, codes, whole, shape)

    return StoredKind(whole, codes, _WEIGHT, (nvfp4.SCALE_SUFFIX, whole), shape, opened, "U8")


def _packed(stored: CompressedFormat) -> StoredKind:
    return StoredKind(
        sign=integers.PACKED_SUFFIX,
        main=integers.PACKED_SUFFIX,
        weight=_WEIGHT,
        companions=integers.PACKED_COMPANIONS,
        shape=integers.packed_shape,
        open=partial(IntegerWeight.packed, stored=stored),
    )


def _bytes(stored: CompressedFormat) -> StoredKind:
    return StoredKind(
        sign=integers.SCALE_SUFFIX,
        main=_WEIGHT,
        weight=_WEIGHT,
        companions=(integers.SCALE_SUFFIX, integers.ZERO_POINT_SUFFIX),
        shape=integers.bytes_shape,
        open=partial(IntegerWeight.bytes_of, stored=stored),
        dtype="I8",
    )


_TABLE = StoredKind(bitsandbytes.SIGN, "", "", bitsandbytes.COMPANIONS, bitsandbytes.table_shape, TableWeight.open)
_ROW_SCALED = StoredKind(
    sign=integers.ROW_SCALE_SUFFIX,
    main=_WEIGHT,
    weight=_WEIGHT,
    companions=(integers.ROW_SCALE_SUFFIX, ".weight_format"),
    shape=integers.bytes_shape,
    open=IntegerWeight.with_row_scales,
    dtype="I8",
)
