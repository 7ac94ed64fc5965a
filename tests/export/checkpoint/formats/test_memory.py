"""Reading any format, and keeping or choosing codes, stays within what the weight stage counts for it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.formats.modelopt_config import of_side_file
from qwonnx.export.checkpoint.formats.source_quantization import parse_quantization
from qwonnx.export.checkpoint.formats.stored_weights import StoredWeights, is_transposed, repacking_bytes
from qwonnx.export.checkpoint.row_reader import RowReader, Rows, Transform
from qwonnx.export.quantization.importance import Importance
from qwonnx.export.quantization.recipe import Recipe, WeightStorage
from qwonnx.export.weight_files.weight_slices import WeightSlice
from qwonnx.export.weight_files.weight_stage import encode
from tests.checkpoints.every_format import FORMATS
from tests.checkpoints.quantized_formats import write_tensors
from tests.export.weight_files.peak_memory import peak_bytes

NAME, SHAPE = "layers.0.mlp.down_proj.weight", (512, 1024)
VALUES = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)


@pytest.mark.parametrize("name", FORMATS)
def test_a_slice_takes_no_more_memory_than_the_account_says(tmp_path: Path, name: str) -> None:
    chosen = FORMATS[name]
    write_tensors(tmp_path / "model.safetensors", chosen.matrix(NAME, VALUES).stored)
    config = chosen.config or of_side_file(chosen.side or {})
    quantization = parse_quantization({"quantization_config": config}, {}, "config.json")
    weight = StoredWeights(Checkpoint.open(tmp_path), quantization).open(NAME, SHAPE)
    reader = RowReader(
        name=NAME,
        num_rows=SHAPE[0],
        num_columns=SHAPE[1],
        num_source_bytes=weight.num_bytes,
        stored_codes=frozenset({weight.codes}),
        _groups=((Rows(weight, 0),),),
        _transform=Transform.NONE,
        _is_transposed=is_transposed(weight),
        _repacking_bytes=repacking_bytes(weight),
        _reading_bytes=weight.reading_bytes,
        _reading_bytes_per_value=weight.reading_bytes_per_value,
    )
    storages = [Recipe.preset(weights, 32).storage(NAME, SHAPE) for weights in ("fp32", "int4", "int8")]
    if weight.codes is not None:
        storages[1:] = [WeightStorage(weight.codes.bits, 32, weight.codes.has_zero_points)]
    for storage in storages:
        for start, count in ((0, SHAPE[0]), (33, 64)):
            part = WeightSlice(0, storage, reader, start, count, 0, SHAPE[1])
            assert 0 < peak_bytes(partial(encode, Importance({}), part)) <= part.making_bytes, storage
