"""Opening a checkpoint and reading from it; each way in which its files can be wrong is a test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from qwonnx.export.checkpoint.checkpoint import Checkpoint, TensorInfo
from qwonnx.export.checkpoint.resolved_checkpoint import resolve_checkpoint
from qwonnx.export.errors import CheckpointError, MissingTensorError, TensorFormatError
from qwonnx.runtime.artifact.manifest import SourceFacts
from tests.checkpoints import write_tiny

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sharded_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("sharded") / "tiny", num_shards=3)


@pytest.fixture
def sharded(sharded_original: Path, tmp_path: Path) -> Path:
    """A sharded checkpoint that a test may damage."""
    return Path(shutil.copytree(sharded_original, tmp_path / "tiny"))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def edit_index(folder: Path, edit: Callable[[dict[str, str]], object]) -> None:
    """Change the weight_map of an index in place."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    edit(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def refused(folder: Path, kind: type[CheckpointError] = CheckpointError) -> str:
    """The message with which a checkpoint is refused: one line, with a cause and a remedy."""
    with pytest.raises(kind) as caught:
        Checkpoint.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert ": " in message
    return message


def reference(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in shards(folder):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, file.get_tensor(name)


# Reading


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_tensor_is_read_as_the_safetensors_library_reads_it(tmp_path: Path, dtype: str) -> None:
    folder = write_tiny(tmp_path, dtype=dtype, num_shards=2)
    checkpoint = Checkpoint.open(folder)
    expected = dict(reference(folder))
    assert checkpoint.names == expected.keys()
    for name, tensor in expected.items():
        found = checkpoint.read(name)
        assert found.dtype == tensor.dtype
        assert found.is_contiguous()
        assert torch.equal(found, tensor), name
    assert checkpoint.total_bytes == sum(tensor.nbytes for tensor in expected.values())


def test_rows_of_the_first_axis_are_read_alone(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    name = "model.language_model.layers.1.mlp.experts.gate_up_proj"
    whole = checkpoint.read(name)
    assert whole.shape == (16, 128, 128)
    assert torch.equal(checkpoint.read(name, 3, 2), whole[3:5])
    assert torch.equal(checkpoint.read(name, 15), whole[15:])
    assert checkpoint.read(name, 16).shape == (0, 128, 128)
    assert checkpoint.read(name, 2, 0).shape == (0, 128, 128)


def test_columns_of_a_matrix_are_read_alone(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    name = "model.language_model.layers.0.linear_attn.in_proj_qkv.weight"
    whole = checkpoint.read(name)
    for start, count in ((0, 1), (3, 50), (127, 1), (64, 0), (0, 128)):
        columns = checkpoint.read_columns(name, start, count)
        assert columns.is_contiguous()
        assert torch.equal(columns, whole[:, start : start + count])


@pytest.mark.parametrize(
    ("name", "shape", "dtypes", "kind", "message"),
    [
        ("a", (2, 3), ("F32",), None, ""),
        ("b", (2, 3), ("F32",), MissingTensorError, r"no b of shape \[2, 3\]"),
        ("a", (3, 2), ("F32",), TensorFormatError, r"a has shape \[2, 3\] where config\.json asks for \[3, 2\]"),
        ("a", (2, 3), ("I32", "BF16"), TensorFormatError, "a is stored as F32: export a checkpoint with I32 or BF16"),
    ],
)
def test_what_is_expected_of_a_tensor_is_checked(
    tmp_path: Path,
    name: str,
    shape: tuple[int, ...],
    dtypes: tuple[str, ...],
    kind: type[CheckpointError] | None,
    message: str,
) -> None:
    save_file({"a": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    if kind is None:
        assert checkpoint.expect(name, shape, dtypes) == 24
        return
    with pytest.raises(kind, match=message):
        checkpoint.expect(name, shape, dtypes)


def test_what_was_read_does_not_change_with_what_is_read_next(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    first = checkpoint.read("lm_head.weight", 0, 4)
    before = first.clone()
    checkpoint.read("lm_head.weight", 4, 4).zero_()
    assert torch.equal(first, before)


def test_several_threads_read_at_once(sharded_original: Path) -> None:
    checkpoint = Checkpoint.open(sharded_original)
    names = list(checkpoint.names) * 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(checkpoint.read, names))
    expected = dict(reference(sharded_original))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in zip(names, found, strict=True))


def test_information_comes_without_reading(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    name = "model.language_model.layers.0.linear_attn.A_log"
    assert checkpoint.info(name) == TensorInfo(name, "F32", (4,), 16)
    assert checkpoint.dtype == "bfloat16"


def test_a_scalar_is_read_whole(tmp_path: Path) -> None:
    save_file({"s": torch.tensor(3.5), "e": torch.empty(0, 4)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.read("s") == 3.5
    assert checkpoint.read("e").shape == (0, 4)


def test_a_tensor_that_is_not_there_is_refused_by_name(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    for ask in (checkpoint.info, checkpoint.read):
        with pytest.raises(MissingTensorError, match=r"no tensor model\.nothing: it is incomplete"):
            ask("model.nothing")


def test_a_tensor_of_another_format_is_known_and_not_read(tmp_path: Path) -> None:
    save_file({"w": torch.ones(8, dtype=torch.int64)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.info("w").dtype == "I64"
    with pytest.raises(TensorFormatError, match="w is stored as I64: export a BF16, F16 or F32 checkpoint"):
        checkpoint.read("w")


def test_a_file_that_shrinks_while_it_is_read_is_an_error(sharded: Path) -> None:
    checkpoint = Checkpoint.open(sharded)
    for path in shards(sharded):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TensorFormatError, match="became shorter"):
        checkpoint.read("lm_head.weight")


def test_a_file_that_vanishes_before_it_is_read_is_an_error(sharded: Path) -> None:
    checkpoint = Checkpoint.open(sharded)
    for path in shards(sharded):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read \(No such file"):
        checkpoint.read("lm_head.weight")


# Which files are a checkpoint


def test_shards_are_found_through_the_index(sharded: Path) -> None:
    stray = sharded / "adapter.safetensors"
    save_file({"lora": torch.ones(1)}, stray)
    assert "lora" not in Checkpoint.open(sharded).names


def test_shards_without_an_index_are_all_read(sharded: Path) -> None:
    expected = set(Checkpoint.open(sharded).names)
    (sharded / INDEX).unlink()
    assert set(Checkpoint.open(sharded).names) == expected


def test_a_single_file_stands_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))
    save_file({"lora": torch.ones(1)}, folder / "adapter.safetensors")
    assert "lora" not in Checkpoint.open(folder).names


def test_shards_may_be_links_as_in_the_hubs_cache(sharded: Path, tmp_path: Path) -> None:
    expected = set(Checkpoint.open(sharded).names)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(shards(sharded)):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..") / "blobs" / str(number))
    assert set(Checkpoint.open(sharded).names) == expected


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    assert "has no safetensors files: give a folder" in refused(tmp_path, MissingTensorError)


# Damaged files


def test_a_missing_shard_is_refused_by_name(sharded: Path) -> None:
    gone = shards(sharded)[1]
    gone.unlink()
    assert f"shard {gone.name} is missing" in refused(sharded, MissingTensorError)


def test_a_missing_shard_is_noticed_without_an_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    total = len(shards(sharded))
    shards(sharded)[0].unlink()
    assert f"has {total - 1} of the {total} files" in refused(sharded, MissingTensorError)


def test_a_truncated_shard_is_refused_by_name(sharded: Path) -> None:
    path = shards(sharded)[2]
    path.write_bytes(path.read_bytes()[:-1])
    message = refused(sharded, TensorFormatError)
    assert str(path) in message
    assert "is truncated" in message


def test_an_empty_shard_is_refused_by_name(sharded: Path) -> None:
    path = shards(sharded)[0]
    path.write_bytes(b"")
    assert f"{path} is truncated" in refused(sharded, TensorFormatError)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "sub/model.safetensors",
        "..\\secret.safetensors",
        "C:\\secret.safetensors",
        "model.safetensors\x00.safetensors",
        "a\nb.safetensors",
        "\ud800.safetensors",
        "x" * 300 + ".safetensors",
        ".safetensors",
        "model.bin",
        "..",
        "",
        7,
        None,
        ["model.safetensors"],
    ],
)
def test_an_index_that_points_outside_the_folder_is_refused(sharded: Path, tmp_path: Path, name: object) -> None:
    shutil.copy(shards(sharded)[0], tmp_path / "secret.safetensors")
    edit_index(sharded, lambda weight_map: weight_map.update({"lm_head.weight": name}))  # type: ignore[dict-item]
    assert "not a file of its folder: do not use this checkpoint" in refused(sharded)


def test_a_tensor_of_the_index_that_no_shard_has_is_refused(sharded: Path) -> None:
    shard = shards(sharded)[0].name
    edit_index(sharded, lambda weight_map: weight_map.update({"model.extra": shard}))
    assert f"{shard} in {sharded} lacks 'model.extra'" in refused(sharded, MissingTensorError)


def test_a_tensor_that_the_index_places_in_another_shard_is_refused(sharded: Path) -> None:
    first, last = shards(sharded)[0].name, shards(sharded)[-1].name
    embedding = "model.language_model.embed_tokens.weight"
    edit_index(sharded, lambda weight_map: weight_map.update({embedding: last}))
    assert f"{last} in {sharded} lacks {embedding!r}" in refused(sharded, MissingTensorError)
    assert first != last


def test_a_tensor_that_the_index_does_not_list_is_refused(sharded: Path) -> None:
    edit_index(sharded, lambda weight_map: weight_map.pop("lm_head.weight"))
    assert "'lm_head.weight', which the index does not list" in refused(sharded, TensorFormatError)


def test_a_tensor_that_is_in_two_shards_is_refused(sharded: Path) -> None:
    first, second = shards(sharded)[:2]
    second.write_bytes(first.read_bytes())
    (sharded / INDEX).unlink()
    message = refused(sharded, TensorFormatError)
    assert first.name in message
    assert second.name in message


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"a": NaN}'])
def test_a_malformed_index_is_refused(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content, encoding="utf-8")
    assert INDEX in refused(sharded)


# Where a checkpoint is


def test_a_local_folder_is_named_by_its_last_part(tiny_checkpoint: Path) -> None:
    resolved = resolve_checkpoint(str(tiny_checkpoint), None)
    assert resolved.folder == tiny_checkpoint
    assert resolved.source == SourceFacts("tiny", None, "bfloat16")
    assert resolved.tensors.names == Checkpoint.open(tiny_checkpoint).names


def test_a_checkpoint_of_another_dtype_says_so(tmp_path: Path) -> None:
    assert resolve_checkpoint(str(write_tiny(tmp_path, dtype="F16")), None).source.dtype == "float16"


def test_its_files_are_known_by_size_time_and_header(sharded: Path) -> None:
    before = {file.name: file for file in Checkpoint.open(sharded).files}
    shards = sorted(sharded.glob("*.safetensors"))
    assert [(file.name, file.size) for file in before.values()] == [(path.name, path.stat().st_size) for path in shards]
    content = shards[0].read_bytes()
    shards[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # a value
    name = sorted(Checkpoint.open(sharded).names)[0]
    other = "x" * len(name)
    for path in (*shards, sharded / INDEX):  # a name
        path.write_bytes(path.read_bytes().replace(f'"{name}"'.encode(), f'"{other}"'.encode()))
    after = {file.name: file for file in Checkpoint.open(sharded).files}
    assert [file.size for file in after.values()] == [file.size for file in before.values()]
    assert after[shards[0].name].version != before[shards[0].name].version
    changed = [name for name in before if before[name].header_sha256 != after[name].header_sha256]
    assert len(changed) == 1
