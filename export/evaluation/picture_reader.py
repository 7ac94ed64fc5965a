"""Pictures in questions to a checkpoint: transformers' image processor, and the places of pictures in a prompt."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwonnx.export.evaluation.subject import SkippedError

if TYPE_CHECKING:
    from torch import Tensor

_CONFIG = "preprocessor_config.json"
_DATA_URL = "data:image/"
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # pillow has fifty more, and some start programs


class PictureReader:
    """Reads the pictures of questions, as preprocessor_config.json says.

    This is the processor that uses numpy and pillow: the other one needs a torchvision that fits the installed torch.
    The runtime tokenises prompts, so transformers' processor of text and pictures is not needed.

    Args:
        folder: of the checkpoint.

    Raises:
        SkippedError: the checkpoint has no vision tower or describes no processor, or transformers does not load it.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoConfig, AutoImageProcessor

        from qwonnx.export.errors import first_line

        if not (folder / _CONFIG).is_file():
            raise SkippedError(f"with pictures: the checkpoint has no {_CONFIG}")
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        except (ImportError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise SkippedError(
                f"with pictures: transformers cannot load the processor ({first_line(error)})"
            ) from error
        if not hasattr(config, "vision_config"):
            raise SkippedError("with pictures: the checkpoint has no vision tower")
        self._image_token_id: int = config.image_token_id
        self._patches_a_token: int = config.vision_config.spatial_merge_size**2

    def read(self, prompt_ids: Sequence[int], parts: Sequence[dict[str, Any]]) -> tuple[list[int], dict[str, Tensor]]:
        """A prompt with one place for each token of a picture, and the model's arguments for the pictures.

        Args:
            prompt_ids: with one image token for each picture.
            parts: of messages; each has a picture.

        Returns:
            The prompt's ids; pixel_values float32 [patches, channels * frames * height * width], image_grid_thw int64
            [pictures, 3], in patches.

        Raises:
            SkippedError: a part is not a picture as a data URL, the processor refuses a picture, or the prompt does not
                have one image token for each.
        """
        pictures = [_picture(part) for part in parts]
        try:
            made = self._processor(images=pictures, return_tensors="pt")
        except ValueError as error:  # an aspect ratio above 200
            raise SkippedError("with a picture that the checkpoint's processor refuses") from error
        counts = (made["image_grid_thw"].prod(-1) // self._patches_a_token).tolist()
        if sum(token == self._image_token_id for token in prompt_ids) != len(counts):
            raise SkippedError("whose prompt does not have one place for each picture")
        following, ids = iter(counts), []
        for token in prompt_ids:
            ids += [token] * (next(following) if token == self._image_token_id else 1)
        return ids, {name: made[name] for name in ("pixel_values", "image_grid_thw")}


def _picture(part: dict[str, Any]) -> Any:
    """The picture of a message's part. It must be a data URL, because nothing is fetched.

    Raises:
        SkippedError: it is not a data URL, or it cannot be decoded.
    """
    from PIL import Image

    url = part.get("image_url", part.get("image"))
    if isinstance(url, dict):
        url = url.get("url")
    if not isinstance(url, str) or not url.startswith(_DATA_URL):
        raise SkippedError("with a part that is neither text nor a picture as a data URL")
    try:
        content = base64.b64decode(url.partition(",")[2], validate=True)
        return Image.open(io.BytesIO(content), formats=_FORMATS).convert("RGB")
    except (binascii.Error, ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise SkippedError("with a picture that cannot be decoded") from error
