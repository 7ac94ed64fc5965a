"""Write the table of operators that the plugin TensorRT for RTX imports, export/targets/rtx_importers.txt.

    python infra/gpu/importer_table.py WHEEL >export/targets/rtx_importers.txt

WHEEL is that of onnxruntime-ep-nv-tensorrt-rtx-cu13: `pip download --no-deps onnxruntime-ep-nv-tensorrt-rtx-cu13`. Its
parser registers an importer under the name of each operator, so a name that is nowhere in its library has none. The
other way round is less sure: importers of some standard operators only say that TensorRT has none. Those that NVIDIA's
table of operators marks so are left out. Run it again for every release that is supported.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from zipfile import ZipFile

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as binding

_PARSER = re.compile(r".*/libtensorrt_onnxparser_rtx\.so\.[0-9.]+")
_DOMAINS = ("", "com.microsoft")
# onnx-tensorrt's docs/operators.md: "N".
_REFUSED = frozenset(
    [
        "AffineGrid",
        "Bernoulli",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "CenterCropPad",
        "Col2Im",
        "ConcatFromSequence",
        "ConvInteger",
        "Det",
        "DynamicQuantizeLinear",
        "ImageDecoder",
        "MatMulInteger",
        "MaxRoiPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "MoE",
        "MulInteger",
        "Multinomial",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "QLinearConv",
        "QLinearMatMul",
        "RegexFullMatch",
        "Scale",
        "Scatter",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SoftmaxCrossEntropyLoss",
        "SplitToSequence",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "TfIdfVectorizer",
        "Unique",
    ]
)


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    wheel = Path(sys.argv[1])
    with ZipFile(wheel) as archive:
        library = archive.read(next(name for name in archive.namelist() if _PARSER.fullmatch(name)))
    schemas = {each.name for each in binding.get_all_operator_schema() if each.domain in _DOMAINS}
    names = sorted(name for name in schemas - _REFUSED if name.encode() + b"\0" in library)
    print(f"# Importers of {wheel.name.split('-py3')[0]}, by infra/gpu/importer_table.py")
    print(f"# among the operators of ONNX Runtime {onnxruntime.__version__}")
    print("\n".join(names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
