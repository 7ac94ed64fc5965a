"""Files of capsules: private, and nothing but regular files is opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from qwonnx.handlers.chat.capsule_files import CapsuleFiles, LocalFiles, RemoteFiles, capsule_files
from qwonnx.runtime.errors import CapsuleError, SettingsError

pytestmark = pytest.mark.fast

NAME = "0a.capsule"


@pytest.fixture(params=["local", "remote"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> CapsuleFiles:
    if request.param == "local":
        return LocalFiles(tmp_path / "parent" / "capsules")
    return RemoteFiles(fsspec.filesystem("file"), str(tmp_path / "capsules"))


def test_what_was_written_is_read_and_set_aside(files: CapsuleFiles) -> None:
    assert files.read(NAME, 10) is None
    assert not files.exists(NAME)
    files.set_aside(NAME)
    for content in (b"", b"old", b"content"):
        files.write(NAME, content)
        assert files.exists(NAME)
        assert files.read(NAME, 7) == content
    with pytest.raises(CapsuleError, match="has 7 bytes and should have at most 6"):
        files.read(NAME, 6)
    files.set_aside(NAME)
    assert files.read(NAME, 10) is None


def test_a_file_is_removed_once(files: CapsuleFiles) -> None:
    assert not files.remove(NAME)
    files.write(NAME, b"content")
    files.close()  # lets go of connections only
    assert files.remove(NAME)
    assert not files.exists(NAME)
    assert not files.remove(NAME)


def test_a_folder_and_its_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    folder = tmp_path / "parent" / "capsules"
    before = os.umask(0)
    try:
        LocalFiles(folder).write(NAME, b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / NAME).stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [NAME]


def test_a_capsule_that_is_set_aside_can_be_looked_at(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    for content in (b"one", b"two"):
        files.write(NAME, content)
        files.set_aside(NAME)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(f"{NAME}.failed", b"two")]


def _link(path: Path) -> None:
    (path.parent / "secret").write_bytes(b"secret")
    path.symlink_to(path.parent / "secret")


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "said"),
    [(os.mkfifo, "not a regular file"), (_link, "a link"), (_device, "a link"), (Path.mkdir, "not a regular file")],
)
def test_what_is_no_regular_file_is_not_opened_and_makes_room(
    tmp_path: Path, make: Callable[[Path], None], said: str
) -> None:
    make(tmp_path / NAME)
    files = LocalFiles(tmp_path)
    with pytest.raises(CapsuleError, match=said):
        files.read(NAME, 1 << 20)
    assert files.exists(NAME)
    files.set_aside(NAME)
    files.write(NAME, b"content")
    assert files.read(NAME, 10) == b"content"


def test_a_link_is_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"before")
    (tmp_path / NAME).symlink_to(tmp_path / "target")
    LocalFiles(tmp_path).write(NAME, b"content")
    assert (tmp_path / "target").read_bytes() == b"before"
    assert not (tmp_path / NAME).is_symlink()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "inside").touch()
    with pytest.raises(OSError, match=r"."):
        LocalFiles(tmp_path).write(NAME, b"content")
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_path_and_a_url_of_this_machine_are_a_folder_and_others_are_not(tmp_path: Path) -> None:
    assert isinstance(capsule_files(str(tmp_path)), LocalFiles)
    assert isinstance(capsule_files(f"file://{tmp_path}"), LocalFiles)
    assert isinstance(capsule_files("memory://capsules"), RemoteFiles)
    with pytest.raises(SettingsError, match="cannot be kept there"):
        capsule_files("nonsense://somewhere")
