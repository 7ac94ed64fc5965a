"""The scales of a quantised cache: from the weights alone, and right for the model's real keys and values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwonnx.export import ExportOptions
from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.config import load_config
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.quantization.cache_scales import CacheScales, cache_scales
from qwonnx.runtime.artifact.folder import Artifact
from tests.checkpoints import write_tiny
from tests.export.decoder import Decoder

LAYER = 3
HEADROOM = {"int8": 16.0, "int4": 4.0}
LARGEST = {"int8": 127, "int4": 7}


def _scales(checkpoint: Path, kv: str) -> dict[int, CacheScales]:
    config = load_config(checkpoint)
    return cache_scales(WeightSource(Checkpoint.open(checkpoint), config), config, kv)


@pytest.mark.parametrize("kv", ["int8", "int4"])
def test_what_the_model_caches_is_as_large_as_its_weights_say(
    tiny_checkpoint: Path, tiny_fp32: Artifact, kv: str
) -> None:
    scales = _scales(tiny_checkpoint, kv)
    assert list(scales) == [LAYER]
    decoder = Decoder(tiny_fp32)
    decoder.prefill(np.random.default_rng(0).integers(0, 256, 400), [400])
    # A normed key of 32 components has none larger than the root of 32, times its norm's weight.
    headroom = {"key": min(HEADROOM[kv], 32**0.5), "value": HEADROOM[kv]}
    for kind, scale in (("key", scales[LAYER].key), ("value", scales[LAYER].value)):
        cached = decoder.state(LAYER, kind)[0, :, :400]  # [num_kv_heads, 400, head_dim]
        codes = cached / scale[:, None].numpy()
        spread = np.sqrt(np.square(codes).mean(axis=1)) * headroom[kind] / LARGEST[kv]
        assert 0.6 < np.median(spread) < 1.3, "in standard deviations as computed"
        # Rounding is to half a code; only what clipping cuts off may be more.
        assert (np.abs(codes) > LARGEST[kv] + 0.5).mean() < (1e-3 if kv == "int4" else 1e-9)


def test_a_channel_twice_as_large_has_twice_the_scale(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    prefix = f"model.language_model.layers.{LAYER}.self_attn."
    before = _scales(tmp_path, "int8")[LAYER]
    tensors[prefix + "v_proj.weight"][7] *= 2
    tensors[prefix + "k_norm.weight"][30] = 1 + 2 * tensors[prefix + "k_norm.weight"][30]  # 1 + w doubles
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    after = _scales(tmp_path, "int8")[LAYER]
    expected = torch.ones_like(before.value)
    expected[0, 7] = 2
    torch.testing.assert_close(after.value / before.value, expected, rtol=1e-2, atol=0)
    expected = torch.ones_like(before.key)
    expected[:, 30] = 2
    torch.testing.assert_close(after.key / before.key, expected, rtol=1e-2, atol=0)


def test_two_channels_that_rotate_into_each_other_share_a_scale(tiny_checkpoint: Path) -> None:
    key = _scales(tiny_checkpoint, "int4")[LAYER].key  # 8 of 32 dimensions are rotated
    torch.testing.assert_close(key[:, :4], key[:, 4:8], rtol=0, atol=0)
    assert (key[:, 8:12] != key[:, 12:16]).all()


@pytest.mark.parametrize("silent", ["one channel", "all channels"])
def test_a_silent_channel_has_a_scale_that_can_be_divided_by(tmp_path: Path, silent: str) -> None:
    write_tiny(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    prefix = f"model.language_model.layers.{LAYER}.self_attn."
    rows = slice(3, 4) if silent == "one channel" else slice(None)
    for name in ("v_proj", "k_proj"):
        tensors[f"{prefix}{name}.weight"][rows] = 0
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    scales = _scales(tmp_path, "int4")[LAYER]
    for scale in (scales.key, scales.value):
        assert torch.isfinite(scale.reciprocal()).all()
        assert (scale > 0).all()


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_the_scales_are_part_of_the_graph(
    export_tiny: Callable[[ExportOptions], Artifact], tiny_checkpoint: Path, target: str
) -> None:
    import onnx

    artifact = export_tiny(ExportOptions(target=target, weights="fp32", kv="int4"))
    model = onnx.load(artifact.file("decoder.onnx"), load_external_data=False)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    scales = _scales(tiny_checkpoint, "int4")[LAYER]
    for name, scale in (("key_scale", scales.key), ("value_scale", scales.value)):
        found = onnx.numpy_helper.to_array(stored[f"layers.{LAYER}.self_attn.{name}"])
        np.testing.assert_array_equal(found, scale.numpy()[None, :, None])
