"""The layout of weight files, against the writer, for any sizes and any limit of a file."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from qwonnx.export.external_data import ALIGNMENT, ExternalDataWriter, ExternalTensor
from qwonnx.export.planning.decoder_weights import StoredWeight, Weight
from qwonnx.export.planning.weight_files import lay_out
from qwonnx.export.recipe import FLOAT32, WeightStorage

STORAGES = (FLOAT32, WeightStorage(8, 32), WeightStorage(4, 64))
weights = st.builds(
    lambda rows, storage: StoredWeight((Weight("layers.0.x", (rows, 64)),), storage),
    st.integers(1, 200),
    st.sampled_from(STORAGES),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(weights, min_size=1, max_size=25), st.sampled_from([ALIGNMENT, 20_000, 60_000, 1 << 30]))
def test_places_and_sizes_are_the_writers(stored: list[StoredWeight], shard_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places: list[tuple[ExternalTensor, ExternalTensor | None]] = []
        with ExternalDataWriter(folder, shard_bytes) as writer:
            for weight in stored:
                codes = writer.begin(weight.num_code_bytes)
                scales = writer.begin(weight.num_scale_bytes) if weight.storage.is_quantized else None
                codes.write(memoryview(bytes(weight.num_code_bytes)))
                if scales is not None:
                    scales.write(memoryview(bytes(weight.num_scale_bytes)))
                places.append((codes.tensor, None if scales is None else scales.tensor))
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    layout = lay_out(stored, shard_bytes)
    assert [(place.codes, place.scales) for place in layout.places] == places
    assert {file.path: file.num_bytes for file in layout.files} == sizes
    assert layout.num_bytes == sum(sizes.values())
