"""Nothing leaves the machine: system calls of a server, and of a session with ONNX Runtime's reports turned on."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import httpx
import pytest

from qwonnx.runtime import telemetry
from qwonnx.runtime.artifact.folder import Artifact
from tests.handlers.cli.commands import FAST, QWONNX
from tests.handlers.serving import chat

ROOT = Path(__file__).resolve().parents[3]
# Longer than ONNX Runtime needs from its start to its first question to DNS, which was seen after ten seconds.
_SERVED_SECONDS = float(os.environ.get("QWONNX_TEST_ISOLATION_SECONDS", "12"))

# Where one of these is set, ONNX Runtime takes the machine for a builder, reports nothing, and tests prove less.
_BUILDERS = (
    "CI",
    "TF_BUILD",
    "GITHUB_ACTIONS",
    "GITLAB_CI",
    "CIRCLECI",
    "TRAVIS",
    "JENKINS_URL",
    "CODEBUILD_BUILD_ID",
    "BUILDKITE",
    "TEAMCITY_VERSION",
    "APPVEYOR",
    "BITBUCKET_BUILD_NUMBER",
)

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="the Debian package strace is not installed")


# Prints the switch as it is when onnxruntime is first imported.
_SPY = """
import os, sys
class Spy:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Spy())
from {module} import {name}
if "onnxruntime" not in sys.modules:
    import onnxruntime
"""


@dataclass(frozen=True, slots=True)
class Calls:
    """System calls that strace wrote, of all threads.

    Attributes:
        written: files that were opened or created for writing.
        read: files that were opened for reading, of those that exist.
        connections: calls that send to, or ask for, an address of the internet's families.
        sockets: sockets of these families that were made.
    """

    written: frozenset[str]
    read: frozenset[str]
    connections: tuple[str, ...]
    sockets: tuple[str, ...]

    @classmethod
    def of(cls, log: str) -> Calls:
        lines = log.splitlines()
        written, read = set(), set()
        for line in lines:
            if opened := re.search(r'\b(?:open|openat|creat)\((?:AT_FDCWD, )?"([^"]*)", ([A-Z_|]+)', line):
                if re.search(r"O_WRONLY|O_RDWR|O_CREAT", opened[2]):
                    written.add(opened[1])
                elif not line.endswith(")") or "= -1" not in line:
                    read.add(opened[1])
            elif made := re.search(r'\b(?:mkdir|rename|link|symlink|mknod)(?:at2?)?\(.*?"([^"]*)"', line):
                written.add(made[1])
        return cls(
            frozenset(path for path in written if not path.startswith("/dev/")),
            frozenset(read),
            tuple(line for line in lines if re.search(r"\b(connect|sendto|sendmsg|sendmmsg)\(.*AF_INET", line)),
            tuple(line for line in lines if re.search(r"\bsocket\(AF_INET", line)),
        )


def test_a_session_with_reports_writes_an_identity(tiny_fp32: Artifact, tmp_path: Path) -> None:
    """The counterproof: what this file looks for is there as soon as the switch is off."""
    program = f"import qwonnx.runtime, onnxruntime; onnxruntime.InferenceSession({str(_graph(tiny_fp32))!r})"
    home = _folder(tmp_path, "home")
    traced = _traced([sys.executable, "-c", program], tmp_path / "log", home, ORT_DISABLE_TELEMETRY="0")
    subprocess.run(traced.command, env=traced.environment, check=True, timeout=120)
    assert any("deviceid" in path for path in Calls.of((tmp_path / "log").read_text()).written)
    assert list(home.rglob("deviceid"))


@pytest.mark.parametrize(
    "entry",
    [
        "qwonnx.runtime.Engine",
        "qwonnx.export.evaluation.decoder_session.DecoderSession",
        "qwonnx.handlers.server.Server",
        "qwonnx.handlers.functions.aws_lambda.handler",
        "infra.bench.block_sizes.main",
    ],
)
@pytest.mark.parametrize("own", [None, "0"])
def test_every_entry_turns_reports_off_before_onnxruntime_is_imported(entry: str, own: str | None) -> None:
    module, _, name = entry.rpartition(".")
    result = _python(_SPY.format(module=module, name=name), ORT_DISABLE_TELEMETRY=own)
    assert (result.stdout.strip(), result.stderr) == (own or "1", "")


def test_a_library_that_came_first_is_named_in_a_warning() -> None:
    assert "onnxruntime was imported before qwonnx" in _python("import onnxruntime, qwonnx.runtime").stderr


def test_a_server_writes_only_capsules_and_connects_to_nothing(tiny_fp32: Artifact, tmp_path: Path) -> None:
    """The root is read-only where the machine allows it, the home is empty, and clients ask all the time."""
    home, writable = _folder(tmp_path, "home"), _folder(tmp_path, "writable")
    capsules, log = _folder(writable, "capsules"), writable / "log"
    served = [*QWONNX, "serve", str(tiny_fp32.folder), "--port", "0", "--capsules", str(capsules)]
    traced = _on_a_read_only_root(_traced(served, log, home), writable)
    with _running(traced) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        (model,) = client.get("/v1/models").json()["data"]
        body = {"model": model["id"], "messages": chat("Hello"), "max_tokens": 4}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        started, until = log.stat().st_size, time.monotonic() + _SERVED_SECONDS
        for number in count():
            answer = client.post("/v1/chat/completions", json=body | {"messages": chat(f"Hello {number}")})
            assert answer.status_code == 200, answer.text
            if time.monotonic() > until:
                break
            time.sleep(0.3)
    calls = Calls.of(log.read_text())
    assert {path for path in calls.written if not path.startswith(str(capsules))} == set()
    assert calls.written, "no capsule was written"
    read = Calls.of(log.read_text()[started:]).read
    expected = (str(capsules), str(tiny_fp32.folder), "/proc/", sys.prefix)  # modules are imported when first needed
    assert {path for path in read if not path.startswith(expected)} == set()
    assert calls.connections == ()
    assert all("SOCK_STREAM" in line for line in calls.sockets)
    assert len(calls.sockets) == 1, "the socket that listens"
    assert list(home.rglob("*")) == []


def test_the_demonstration_speaks_to_this_machine_only_and_writes_in_its_folder(tmp_path: Path) -> None:
    home, log = _folder(tmp_path, "home"), tmp_path / "log"
    traced = _traced([sys.executable, "infra/demo.py", "--once"], log, home)
    ran = subprocess.run(traced.command, cwd=ROOT, env=traced.environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    calls = Calls.of(log.read_text())
    assert {line for line in calls.connections if "127.0.0.1" not in line} == set()
    ours = (".demo", str(ROOT), sys.prefix)  # compiled code goes beside its source
    writing = {path for path in calls.written if not path.startswith((*ours, "/proc/"))}
    assert {path for path in writing if Path(path).exists()} == set()
    assert list(home.rglob("*")) == []


@dataclass(frozen=True, slots=True)
class Traced:
    """A command under strace, and its environment."""

    command: tuple[str, ...]
    environment: Mapping[str, str]


def _python(program: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in (_others() | environment).items() if value is not None}
    return subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=60)


def _others() -> dict[str, str]:
    """This process's environment without what importing qwonnx and torch has set, and without a builder's marks."""
    made = (*telemetry.SWITCHES, "TORCHINDUCTOR_CACHE_DIR", *_BUILDERS)
    return {name: value for name, value in os.environ.items() if name not in made}


def _traced(command: list[str], log: Path, home: Path, **environment: str) -> Traced:
    strace = ("strace", "-f", "-qq", "-s", "300", "-e", "trace=%file,%network", "-o", str(log))
    return Traced((*strace, *command), _others() | FAST | {"HOME": str(home), "PYTHONUNBUFFERED": "1"} | environment)


def _on_a_read_only_root(traced: Traced, writable: Path) -> Traced:
    """The command in a mount namespace where only one folder can be written, or unchanged if there is no `unshare`."""
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"'
    inside = ("unshare", "--map-root-user", "--mount", "sh", "-c", script, str(writable))
    if not shutil.which("unshare") or subprocess.run([*inside, "true"], check=False, capture_output=True).returncode:
        return traced
    return dataclasses.replace(traced, command=(*inside, *traced.command))


@contextmanager
def _running(traced: Traced) -> Iterator[str]:
    """The URL of a server, which is running at the end, too."""
    process = subprocess.Popen(
        traced.command, env=dict(traced.environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        found = next((found for line in process.stdout if (found := re.search(r"http://[^/]+", line))), None)
        assert found, process.stderr and process.stderr.read()
        yield found[0]
        assert process.poll() is None
    finally:
        subprocess.run(["pkill", "-TERM", "-P", str(process.pid)], check=False)  # strace itself would detach
        process.communicate(timeout=30)


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


def _graph(artifact: Artifact) -> Path:
    return artifact.file(artifact.decoder.file)
