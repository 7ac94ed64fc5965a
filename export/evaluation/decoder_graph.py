"""The decoder's graph, for functions that add outputs to it."""

from __future__ import annotations

from pathlib import Path

import onnx

from qwonnx.export.errors import VerificationError, first_line


def read_decoder_graph(path: Path) -> onnx.ModelProto:
    """The model without its weights.

    Raises:
        VerificationError: it is not an ONNX file.
    """
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # an exception of protobuf
        reason = first_line(error)
        raise VerificationError(f"{path} is not an ONNX file ({reason}): export the checkpoint again") from error
