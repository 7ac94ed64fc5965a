"""Finding a checkpoint: a folder, or a hub repository, downloaded from a hub on this machine."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from qwonnx.export.checkpoint.location import Access, locate_checkpoint
from qwonnx.export.checkpoint.resolved_checkpoint import resolve_checkpoint
from qwonnx.export.checkpoint.source_files import SourceHashes
from qwonnx.export.errors import AccessError, CheckpointError, UnsupportedModelError
from qwonnx.export.planning.check import check_checkpoint
from qwonnx.runtime.artifact.manifest import SourceFacts
from tests.checkpoints import write_tiny
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.torch_files import write_torch
from tests.export.checkpoint.hub_server import COMMIT, GATED, REPOSITORY, HubServer, hub_server


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with a sharded tiny checkpoint and files that an export does not use; the cache is empty."""
    folder = write_tiny(tmp_path / "repository", num_shards=2)
    (folder / "README.md").write_text("# tiny", encoding="utf-8")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights")
    (folder / "original").mkdir()
    shutil.copy(folder / "config.json", folder / "original" / "params.json")
    with hub_server(folder) as server:
        # The constants that HF_ENDPOINT and HF_HOME set in a new process.
        files = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}/")
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", "".join((server.url, *files[1:])))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def refused(name: str, revision: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        locate_checkpoint(name, revision)
    message = str(caught.value)
    assert "\n" not in message
    assert ": " in message
    return message


def test_a_repository_is_downloaded_and_named_by_its_commit(hub: HubServer) -> None:
    resolved = resolve_checkpoint(REPOSITORY, None)
    folder = resolved.folder
    assert resolved.source == SourceFacts(REPOSITORY, COMMIT, "bfloat16")
    assert len(resolved.tensors.names) == 93
    assert (folder / "tokenizer.json").is_file()
    assert (folder / "chat_template.jinja").is_file()
    assert (folder / "generation_config.json").is_file()


def test_only_what_an_export_reads_is_downloaded_and_config_json_first(hub: HubServer) -> None:
    resolve_checkpoint(REPOSITORY, "main")
    assert hub.downloads[0] == "config.json"
    assert not {"README.md", "pytorch_model.bin", "original/params.json"} & set(hub.downloads)
    assert len(hub.downloads) == len(set(hub.downloads)) == len(hub.files) - 3


def test_a_downloaded_repository_is_used_without_the_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve_checkpoint(REPOSITORY, None).folder
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve_checkpoint(REPOSITORY, None).folder == folder


def test_a_revision_may_be_a_part_of_the_name(hub: HubServer) -> None:
    resolved = resolve_checkpoint(f"{REPOSITORY}@main", None)
    assert (resolved.source.checkpoint, resolved.source.revision) == (REPOSITORY, COMMIT)
    assert resolve_checkpoint(f"{REPOSITORY}@{COMMIT}", None).folder == resolved.folder
    assert "names a revision, and --revision another one ('v2')" in refused(f"{REPOSITORY}@main", "v2")


def test_other_formats_and_states_of_a_training_are_not_downloaded(hub: HubServer) -> None:
    some = hub.files["config.json"]
    others = ("consolidated.safetensors", "model.fp16.bin", "optimizer.pt", "tf_model.h5", "onnx/model.onnx", "m.gguf")
    hub.files |= dict.fromkeys((*others, "training_args.bin", "original/consolidated.00.safetensors"), some)
    hub.lists = ["../evil.json", "a/../../evil.json", "/etc/passwd", "evil\\..\\x.json"]
    folder = resolve_checkpoint(REPOSITORY, None).folder
    assert not set(others) & set(hub.downloads)
    assert {path.name for path in folder.iterdir()} == set(hub.downloads)
    assert check_checkpoint(REPOSITORY).refusal is None


def test_large_files_come_from_another_host_without_the_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    resolve_checkpoint(REPOSITORY, None)
    check_checkpoint(REPOSITORY)
    assert "Bearer hf_secretsecret" in hub.tokens["127.0.0.1"]
    assert hub.tokens["localhost"] == {None}


def test_a_download_that_breaks_goes_on_where_it_broke(hub: HubServer) -> None:
    shard = next(name for name in hub.files if name.endswith(".safetensors"))
    hub.breaks[shard] = 1
    resolve_checkpoint(REPOSITORY, None)
    assert hub.downloads.count(shard) == 2
    assert hub.sent[shard] == hub.files[shard].stat().st_size


def test_a_download_that_is_interrupted_is_kept_and_goes_on(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)
    shards = [name for name in hub.files if name.endswith(".safetensors")]
    hub.held = threading.Event()

    def interrupt(done: int, total: int) -> None:
        if all(name in hub.sent for name in shards):
            assert hub.held is not None
            hub.held.set()  # of the test's server, whose answers end with it
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve_checkpoint(REPOSITORY, None, access=Access(on_bytes=interrupt))
    hub.held = None
    hub.sent.clear()
    resolve_checkpoint(REPOSITORY, None)
    total = sum(hub.files[name].stat().st_size for name in shards)
    assert 0 < sum(hub.sent.get(name, 0) for name in shards) < 0.7 * total


def test_a_download_with_another_sha256_is_refused_and_not_kept(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = next(name for name in hub.files if name.endswith(".safetensors"))
    resolved = locate_checkpoint(REPOSITORY, None)
    blob = (resolved.folder / shard).resolve()
    content = bytearray(blob.read_bytes())
    content[5] ^= 1
    blob.with_name(blob.name + ".qwonnx.incomplete").write_bytes(content[:1000])
    blob.unlink()
    assert "came with another sha256 than the hub states: run the command again" in refused(REPOSITORY)
    assert locate_checkpoint(REPOSITORY, None).folder == resolved.folder
    assert blob.is_file()


def test_a_busy_hub_is_asked_again(hub: HubServer) -> None:
    hub.busy = 2
    assert check_checkpoint(REPOSITORY).refusal is None
    hub.busy = 100
    assert "it answers 429: too many requests), after several tries" in refused(REPOSITORY)


def test_a_disk_without_room_is_one_line_before_the_download(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    assert f"{REPOSITORY} needs" in (text := refused(REPOSITORY))
    assert "which has 1.00 MB free: free some space, or choose another disk (HF_HOME" in text
    assert not any(name.endswith(".safetensors") for name in hub.downloads)


def test_a_file_of_the_cache_that_was_damaged_is_refused(hub: HubServer) -> None:
    resolved = resolve_checkpoint(REPOSITORY, None)
    with SourceHashes(resolved.tensors) as hashes:
        assert all(file.sha256 == (resolved.folder / file.name).resolve().name for file in hashes.files())
    shard = next(resolved.folder.glob("*.safetensors")).resolve()
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with (
        SourceHashes(resolve_checkpoint(REPOSITORY, None).tensors) as hashes,
        pytest.raises(CheckpointError, match="has another sha256 than the hub"),
    ):
        hashes.files()


def test_a_check_of_a_repository_is_that_of_its_folder_without_a_download(hub: HubServer) -> None:
    report = check_checkpoint(REPOSITORY)
    assert sum(hub.sent[name] for name in hub.files if name.endswith(".safetensors")) < 20_000
    folder = hub.files["config.json"].parent
    expected = check_checkpoint(str(folder))
    # The folder of the hub's own files lacks nothing, and a check does not name what only other formats have.
    assert dataclasses.replace(report, name="", unread=()) == dataclasses.replace(expected, name="", unread=())
    assert report.name == REPOSITORY


def test_a_check_of_what_is_not_there_is_an_error_and_not_a_refusal(hub: HubServer) -> None:
    for name in ("someone/else", GATED):
        with pytest.raises(AccessError):
            check_checkpoint(name)


def test_an_adapter_may_be_a_repository(hub: HubServer, tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base")
    _only(hub, "adapter_config.json", "README.md")
    hub.files["adapter_config.json"].write_text('{"peft_type": "LORA"}', encoding="utf-8")
    refusal = check_checkpoint(str(base), adapters=[REPOSITORY]).refusal or ""
    assert "has no adapter_model.safetensors" in refusal
    assert hub.downloads.count("adapter_config.json") == 1


def test_offline_only_the_cache_is_used(hub: HubServer) -> None:
    offline = Access(offline=True)
    with pytest.raises(AccessError, match="is not in the hub's cache, and offline mode downloads nothing"):
        resolve_checkpoint(REPOSITORY, None, access=offline)
    folder = resolve_checkpoint(REPOSITORY, None).folder
    hub.downloads.clear()
    assert resolve_checkpoint(REPOSITORY, None, access=offline).folder == folder
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(AccessError, match="the hub's cache has only a part of someone/tiny"):
        resolve_checkpoint(REPOSITORY, None, access=offline)
    assert not hub.downloads


def test_a_model_that_is_not_supported_is_refused_before_its_weights_are_downloaded(hub: HubServer) -> None:
    config = hub.files["config.json"]
    document = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**document, "architectures": ["LlamaForCausalLM"]}), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM"):
        resolve_checkpoint(REPOSITORY, None)
    assert hub.downloads == ["config.json"]


def _only(hub: HubServer, *names: str) -> None:
    """The repository has the known files of these names, and else empty ones."""
    some = next(iter(hub.files.values()))
    empty = some.with_name("empty")
    empty.write_bytes(b"{}")
    hub.files = {name: hub.files.get(name, empty) for name in names}


def test_a_repository_of_another_format_is_refused_by_name_and_not_downloaded(hub: HubServer) -> None:
    _only(hub, "config.json", "tokenizer.json", "tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf")
    assert f"{REPOSITORY} has 'tiny-Q4_K_M.gguf', and an export reads GGUF from a disk" in refused(REPOSITORY)
    assert check_checkpoint(REPOSITORY).refusal == refused(REPOSITORY)
    assert not any(name.endswith(".gguf") for name in hub.downloads)


def test_a_repository_of_pytorch_files_is_a_checkpoint(hub: HubServer, tmp_path: Path) -> None:
    source = hub.files["config.json"].parent
    (source / "pytorch_model.bin").unlink()
    made = write_torch(source, tmp_path / "torch", num_shards=2)
    hub.files = {path.name: path for path in made.iterdir() if path.is_file()}
    report = check_checkpoint(REPOSITORY)
    assert not [name for name in hub.files if name.endswith(".bin") and hub.sent[name] > 50_000]
    found, expected = resolve_checkpoint(REPOSITORY, None).tensors, resolve_checkpoint(str(source), None).tensors
    assert found.names == expected.names
    assert all(torch.equal(found.read(name), expected.read(name)) for name in expected.names)
    assert any("may run code" in note for note in report.notes)
    assert report.model is not None
    assert report.model.files == tuple(file.name for file in found.files)


def test_a_repository_without_config_json_is_refused_by_name(hub: HubServer) -> None:
    _only(hub, "tiny-Q4_K_M.gguf", "README.md")
    assert f"{REPOSITORY} has 'tiny-Q4_K_M.gguf', and an export reads GGUF from a disk" in refused(REPOSITORY)
    _only(hub, "weights.npz", "README.md")
    assert f"{REPOSITORY} has no config.json, and 'weights.npz' is a file of MLX" in refused(REPOSITORY)


def test_a_repository_of_nothing_is_refused(hub: HubServer) -> None:
    _only(hub, "README.md")
    assert f"{REPOSITORY} has no config.json: give a folder in Hugging Face layout" in refused(REPOSITORY)


@pytest.mark.parametrize("other", [[], ["config.json", "model.safetensors"]])
def test_an_adapter_in_a_repository_is_refused_before_its_weights_are_downloaded(
    hub: HubServer, other: list[str]
) -> None:
    _only(hub, *other, "adapter_config.json", "adapter_model.safetensors")
    hub.files["adapter_config.json"].write_text('{"base_model_name_or_path": "me/base"}', encoding="utf-8")
    assert "a LoRA adapter of 'me/base'" in refused(REPOSITORY)
    assert not any(name.endswith(".safetensors") for name in hub.downloads)


def test_the_folder_of_chat_templates_is_downloaded(hub: HubServer) -> None:
    name = "additional_chat_templates/tool_use.jinja"
    hub.files[name] = hub.files["chat_template.jinja"]
    assert (resolve_checkpoint(REPOSITORY, None).folder / name).is_file()


def test_a_repository_that_does_not_exist_is_refused(hub: HubServer) -> None:
    assert "someone/else is neither a local folder nor a repository" in refused("someone/else")


def test_a_gated_repository_is_refused_with_how_to_get_it(hub: HubServer) -> None:
    assert f"{GATED} is gated: accept its terms" in refused(GATED)


def test_a_revision_that_does_not_exist_is_refused(hub: HubServer) -> None:
    assert "has no revision 'nowhere'" in refused(REPOSITORY, "nowhere")


def test_a_hub_that_cannot_be_reached_is_one_line(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be reached" in refused(REPOSITORY)


def test_offline_mode_is_one_line(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "is not in the hub's cache, and offline mode downloads nothing" in refused(REPOSITORY)


def test_a_download_that_fails_half_way_is_one_line(hub: HubServer) -> None:
    hub.lost.add("tokenizer.json")
    assert "cannot be downloaded" in refused(REPOSITORY)


@pytest.mark.parametrize("name", ["./nothing", "/nothing/at/all", "nothing", "a/b/c", "-x/y", "owner/na me"])
def test_what_is_neither_a_folder_nor_a_repository_name_is_refused(name: str) -> None:
    assert "does not exist" in refused(name)


def test_a_file_is_no_checkpoint(tiny_checkpoint: Path) -> None:
    assert "is a file: give the checkpoint's folder" in refused(str(tiny_checkpoint / "config.json"))


def test_a_file_of_another_format_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    assert "'m.onnx' is a model in ONNX already: export the checkpoint" in refused(str(tmp_path / "m.onnx"))


def test_a_gguf_file_is_a_checkpoint_and_names_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    first = write_gguf(tiny_checkpoint, tmp_path / "m.gguf", "BF16", num_parts=2)
    location = locate_checkpoint(str(tmp_path / "m-00002-of-00002.gguf"), None)
    assert (location.folder, location.name) == (first, "m-00001-of-00002.gguf")
    assert locate_checkpoint(str(tmp_path), None) == location
    with pytest.raises(CheckpointError, match="has no revision 'main'"):
        locate_checkpoint(str(first), "main")


def test_a_local_folder_has_no_revisions(tiny_checkpoint: Path) -> None:
    assert "which has no revision 'main'" in refused(str(tiny_checkpoint), "main")


def test_a_local_model_that_is_not_supported_is_refused_before_its_files_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
    with pytest.raises(UnsupportedModelError):
        resolve_checkpoint(str(tmp_path), None)


@pytest.mark.parametrize(
    "name", ["x" * 300, "x/" * 3000, "a\x00b", "a\nb", ""], ids=["long", "deep", "NUL", "line", "none"]
)
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    refused(name)


def test_a_folders_name_that_does_not_print_is_told_as_far_as_it_does(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "my\nmodel\udcff")
    assert locate_checkpoint(str(folder), None).name == "my?model?"
