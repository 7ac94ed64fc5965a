"""Pictures become inputs as in the model's training, and only pictures that a question contains are opened."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.miniature.checkpoint import TRAINED
from qwonnx.export.evaluation.picture_reader import PictureReader
from qwonnx.export.evaluation.subject import SkippedError
from qwonnx.runtime.text.tokenizer import Tokenizer
from tests.checkpoints import write_tiny
from tests.infra.miniature.test_model import frames

pytestmark = pytest.mark.fast

Part = dict[str, Any]


def part(content: bytes) -> Part:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(content).decode()}"}}


def file(height: int, width: int, kind: str = "PNG") -> bytes:
    """A picture of noise as a file."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, kind)
    return written.getvalue()


@pytest.fixture(scope="module")
def reader() -> PictureReader:
    return PictureReader(TRAINED)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(TRAINED / "tokenizer.json")


def test_pictures_are_patches_and_take_their_tokens_in_the_prompt(reader: PictureReader, tokenizer: Tokenizer) -> None:
    pad = tokenizer.encode("<|image_pad|>")[0]
    files = [file(64, 96), file(128, 32)]
    prompt = tokenizer.encode("One: <|image_pad|> Two: <|image_pad|>.")
    ids, arguments = reader.read(prompt, [part(content) for content in files])
    assert ids == tokenizer.encode(f"One: {'<|image_pad|>' * 6} Two: {'<|image_pad|>' * 4}.")
    assert ids.count(pad) == 10
    assert arguments["image_grid_thw"].tolist() == [[1, 4, 6], [1, 8, 2]]
    pixels = [frames(np.asarray(Image.open(io.BytesIO(content)))) for content in files]
    np.testing.assert_allclose(arguments["pixel_values"].numpy(), np.concatenate(pixels), rtol=0, atol=1e-6)


def test_sides_become_multiples_of_a_token(reader: PictureReader, tokenizer: Tokenizer) -> None:
    ids, arguments = reader.read(tokenizer.encode("<|image_pad|>"), [part(file(50, 70, "JPEG"))])
    assert arguments["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, "neither text nor a picture"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "neither text nor a picture"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,%%"}}, "cannot be decoded"),
        ({"type": "audio"}, "neither text nor a picture"),
        (part(b"no picture"), "cannot be decoded"),
        (part(file(64, 64)[:200]), "cannot be decoded"),
        (part(file(32, 32, "EPS")), "cannot be decoded"),  # for which pillow would start another program
        (part(file(1, 300)), "refuses"),
    ],
)
def test_anything_else_is_skipped(reader: PictureReader, given: Part, reason: str) -> None:
    with pytest.raises(SkippedError, match=reason):
        reader.read([1, 2, 3], [given])


@pytest.mark.parametrize("places", [0, 2])
def test_a_prompt_has_a_place_for_each_picture(reader: PictureReader, tokenizer: Tokenizer, places: int) -> None:
    with pytest.raises(SkippedError, match="does not have one place for each"):
        reader.read(tokenizer.encode("What? " + "<|image_pad|>" * places), [part(file(32, 32))])


def test_a_checkpoint_that_reads_no_pictures_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "without"
    shutil.copytree(TRAINED, folder, ignore=shutil.ignore_patterns("preprocessor_config.json", "*.safetensors"))
    with pytest.raises(SkippedError, match=r"has no preprocessor_config\.json"):
        PictureReader(folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuchProcessor"}', encoding="utf-8")
    with pytest.raises(SkippedError, match="transformers cannot load the processor"):
        PictureReader(folder)
    text_only = write_tiny(tmp_path / "text", architecture="Qwen3_5MoeForCausalLM")
    shutil.copy(TRAINED / "preprocessor_config.json", text_only)
    with pytest.raises(SkippedError, match="has no vision tower"):
        PictureReader(text_only)
