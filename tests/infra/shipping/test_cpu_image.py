"""The CPU image, built FROM scratch with buildah on a root file system of this machine's Python, answers a question.

`make soak` runs it: it needs root, and buildah (apt install buildah), which works in a container with chroot isolation.
It builds both stages, so pip downloads 50 MB. Not tested here: a read-only root, which chroot isolation cannot have.
The server runs as another user than the files' owner instead.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.miniature.checkpoint import TRAINED
from infra.shipping.image_root import ROOT
from tests.infra.shipping.root_file_system import add_pip, make_base
from tests.infra.shipping.served_process import ask, served_process

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(shutil.which("buildah") is None, reason="there is no buildah (apt install buildah)"),
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="buildah's chroot isolation needs root"),
]

MAX_IMAGE_BYTES = 205_000_000


@dataclass(frozen=True, slots=True)
class Buildah:
    """buildah with a storage of its own."""

    folder: Path

    def command(self, *words: object) -> list[str]:
        places = ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]
        return ["buildah", *places, "--storage-driver", "vfs", *map(str, words)]

    def __call__(self, *words: object) -> str:
        run = subprocess.run(self.command(*words), capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout.strip()

    def build(self, file: Path, context: Path, tag: str, **arguments: str) -> None:
        given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        self("build", "--isolation", "chroot", "--format", "docker", "--file", file, "--tag", tag, *given, context)


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    made = Buildah(tmp_path_factory.mktemp("buildah"))
    yield made
    made("rm", "--all")
    made("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def image(buildah: Buildah, serving_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image with the miniature in it."""
    from qwonnx.export import ExportOptions, export_checkpoint

    folder = tmp_path_factory.mktemp("image")
    scratch = folder / "scratch.Dockerfile"
    scratch.write_text("FROM scratch\nCOPY . /\nENV PATH=/usr/local/bin\n")
    make_base(folder / "base", needed_by=serving_tree)
    shutil.copytree(folder / "base", folder / "build", symlinks=True)
    add_pip(folder / "build")
    for name in ("base", "build"):
        buildah.build(scratch, folder / name, f"localhost/{name}")
    docker = ROOT / "infra" / "docker"
    bases = {"BASE": "localhost/base", "BUILD_BASE": "localhost/build"}
    buildah.build(docker / "cpu.Dockerfile", ROOT, "localhost/cpu", **bases)
    export_checkpoint(TRAINED, folder / "artifact", ExportOptions(weights="int4"))
    buildah.build(docker / "baked.Dockerfile", folder / "artifact", "localhost/baked", IMAGE="localhost/cpu")
    return "localhost/baked"


def configuration(buildah: Buildah, image: str) -> dict[str, Any]:
    found = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]
    assert isinstance(found, dict)
    return found


def test_it_takes_205_mb_at_most_with_python_and_the_miniature(
    buildah: Buildah, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    container = buildah("from", image)
    mounted = Path(buildah("mount", container))
    files = [path for path in mounted.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    with capsys.disabled():
        print(f"\nCPU image FROM scratch, with Python and the miniature: {size / 1e6:.1f} MB")
    assert size <= MAX_IMAGE_BYTES
    assert not list(mounted.glob("app/**/tests")), "tests of packages"
    assert not (mounted / "bin").exists(), "a shell"
    buildah("umount", container)


def test_it_answers_a_question_as_nobodys_user(buildah: Buildah, image: str, tmp_path: Path) -> None:
    set_up = configuration(buildah, image)
    assert set_up["User"] == "65532:65532"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    container = buildah("from", image)
    run = ["run", "--isolation", "chroot", "--env", f"PORT={port}", "--env", "QWONNX_NO_KEY=true", container, "--"]
    command = buildah.command(*run, *set_up["Entrypoint"], *set_up["Cmd"])
    healthy = buildah.command(*run, *set_up["Healthcheck"]["Test"][1:])
    assert set_up["Healthcheck"]["Test"][0] == "CMD"
    assert subprocess.run(healthy, capture_output=True, check=False).returncode != 0, "nothing listens yet"
    with served_process(command, os.environ, tmp_path, end=lambda: terminate(port)) as url:
        asked = ask(
            url.replace("0.0.0.0", "127.0.0.1"),
            "What is Germany called in Swahili?",
            max_tokens=32,
            chat_template_kwargs={"enable_thinking": False},
        )
        assert asked == "Ujerumani"
        assert users_of(port) == {65532}
        assert subprocess.run(healthy, capture_output=True, check=False).returncode == 0


def terminate(port: int) -> None:
    """SIGTERM to the server itself, as a container's runtime sends it; buildah kills what it runs instead."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words, variables = ((entry / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:  # ended meanwhile
            continue
        if b"qwonnx.handlers.cli" in words and f"PORT={port}".encode() in variables and words[0].endswith(b"/python3"):
            os.kill(int(entry.name), signal.SIGTERM)


def users_of(port: int) -> set[int]:
    """Ids of the users whose processes listen on a port."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return {int(parts[7]) for parts in map(str.split, lines) if parts[1].endswith(f":{port:04X}") and parts[3] == "0A"}
