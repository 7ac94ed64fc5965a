"""One model in GGUF files: one file, or a series that llama.cpp's gguf-split has cut.

NAME.gguf                            a model in one file
NAME-00001-of-00003.gguf             a series; its first file has the metadata
mmproj-NAME.gguf                     a vision tower beside a model, which is not read
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwonnx.export.checkpoint.gguf.files import PART
from qwonnx.export.checkpoint.gguf.header import GgufFile, GgufTensor, read_gguf
from qwonnx.export.errors import MissingTensorError, TensorFormatError
from qwonnx.runtime.artifact.strict_json import quoted

_COUNT, _NUMBER, _TENSOR_COUNT = "split.count", "split.no", "split.tensors.count"
_MAX_PARTS = 1000
_OTHER_TEXTS = ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json")


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model's files; the first has the metadata."""

    files: tuple[GgufFile, ...]

    @property
    def first(self) -> GgufFile:
        return self.files[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """For display: values that are quantised twice, and files beside the model that transformers would read."""
        types = {tensor.type for tensor in self.tensors.values()}
        notes = []
        if codes := sorted(block.name for block in types if block.float_dtype is None):
            notes.append(
                f"GGUF: weights of {', '.join(codes)} are decoded, and quantised again as the recipe says: an export of"
                " the checkpoint that they were made from loses less"
            )
        folder = self.first.path.parent
        if beside := [name for name in _OTHER_TEXTS if (folder / name).is_file()]:
            notes.append(f"GGUF: not read beside {quoted(self.first.path.name)}, which has all: {', '.join(beside)}")
        return tuple(notes)

    @property
    def tensors(self) -> dict[str, GgufTensor]:
        return {name: tensor for file in self.files for name, tensor in file.tensors.items()}


def open_gguf(path: Path) -> GgufModel:
    """Read the headers of a model's files.

    Args:
        path: of the first file.

    Raises:
        MissingTensorError: a file of a series is missing.
        TensorFormatError: a file is malformed, or of another series.
        CheckpointError: a file cannot be read.
    """
    found = PART.fullmatch(path.name)
    if found is None:
        file = read_gguf(path)
        count = file.metadata.get(_COUNT, 0)
        if count not in (0, 1):
            raise MissingTensorError(
                f"{path} is a part of a model in {quoted(count)} files, under another name: give the files the names"
                " that they had, NAME-00001-of-0000N.gguf"
            )
        return GgufModel((file,))
    total = int(found[3])
    if not 1 <= total <= _MAX_PARTS:
        raise TensorFormatError(f"{path} is named as one of {total} files: give it the name that it had")
    paths = [path.with_name(f"{found[1]}-{number:05}-of-{found[3]}{found[4]}") for number in range(1, total + 1)]
    missing = next((one for one in paths if not one.is_file()), None)
    if missing is not None:
        there = sum(one.is_file() for one in paths)
        raise MissingTensorError(
            f"{path.parent} has {there} of the {total} files of the model, and lacks {quoted(missing.name)}: copy the"
            " others from where these come from"
        )
    files = tuple(map(read_gguf, paths))
    names: set[str] = set()
    for number, file in enumerate(files):
        if (file.metadata.get(_NUMBER), file.metadata.get(_COUNT)) != (number, total) or names & file.tensors.keys():
            raise TensorFormatError(f"{file.path} is not file {number + 1} of this model: it is of another series")
        names |= file.tensors.keys()
    if files[0].metadata.get(_TENSOR_COUNT, len(names)) != len(names):
        raise MissingTensorError(f"{path} counts other tensors than its series has: restore the files")
    return GgufModel(files)
