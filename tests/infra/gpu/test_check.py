"""The script for a machine with a GPU: whatever ends a check, the others run, and the last line has all findings."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from infra.gpu.check import BUNDLE_JSON

pytestmark = pytest.mark.fast

CHECK = Path(__file__).resolve().parents[3] / "infra" / "gpu" / "check.py"
# Stands for the groups' module: each check's name says how it ends.
GROUPS = """
import json, os, sys, time
group, after = sys.argv[1], sys.argv[sys.argv.index("--after") + 1]
if os.environ.get("GROUP_ENDS"):
    ends = os.environ["GROUP_ENDS"].split()
elif group == "miniature":
    sys.exit("no module named tokenizers")
else:
    ends = ("right", "raises", "wrong", "dies", "hangs" if group == "geometry" else "last")
names = [f"{group}/{end}" for end in ends]
names = names[names.index(after) + 1 :] if after else names
print(json.dumps({"checks": names}), flush=True)
for name in names:
    if "dies" in name:
        print("2026 [W:onnxruntime:Default, a.cc:1] so slow", file=sys.stderr)
        print("an illegal memory access", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 11)
    if name.endswith("hangs"):
        time.sleep(60)
    passed = not any(end in name for end in ("raises", "wrong", "found"))
    print(json.dumps({"name": name, "passed": passed, "detail": "so it is", "figures": {"n": 1}}), flush=True)
    if "raises" in name or "found" in name:
        sys.exit(3)
"""


def write_bundle(folder: Path) -> Path:
    """A bundle of the groups above, in two parts."""
    module = folder / "site" / "infra" / "gpu" / "on_device" / "__main__.py"
    module.parent.mkdir(parents=True)
    module.write_text(GROUPS, encoding="utf-8")
    for package in module.parents[:3]:
        (package / "__init__.py").touch()
    archive = folder / "whole"
    with tarfile.open(archive, "w:gz") as stream:
        stream.add(folder / "site", "site")
    content = archive.read_bytes()
    parts = {f"transfer-{number}/checks.{number}": piece for number, piece in ((1, content[:100]), (2, content[100:]))}
    for path, piece in parts.items():
        (folder / path).parent.mkdir()
        (folder / path).write_bytes(piece)
    listed = [{"path": path, "sha256": hashlib.sha256(piece).hexdigest()} for path, piece in parts.items()]
    entry = {"name": "checks", "sha256": hashlib.sha256(content).hexdigest(), "parts": listed}
    document = {"python": None, "onnxruntime": "none", "archives": [entry]}
    (folder / BUNDLE_JSON).write_text(json.dumps(document), encoding="utf-8")
    return folder


def run(folder: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """Status, findings by name, and all that was printed, whose last line results.json has too."""
    command = [sys.executable, str(CHECK), str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    *_, last = done.stdout.splitlines()
    kept, said = json.loads((folder / "results.json").read_text(encoding="utf-8")), json.loads(last)
    assert kept | {"seconds": 0} == said | {"seconds": 0}
    return done.returncode, said["findings"], done.stdout


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path)


def test_what_ends_a_process_is_one_failure_and_the_rest_runs(bundle: Path) -> None:
    status, findings, printed = run(bundle, "--only", "device", "miniature", "operators")
    assert status == 1
    outcomes = {name: finding["outcome"] for name, finding in findings.items()}
    ends = {"right": "PASS", "raises": "FAIL", "wrong": "FAIL", "dies": "FAIL", "last": "PASS"}
    expected = {"bundle": "PASS", "miniature/start": "FAIL"}
    expected |= {f"{group}/{end}": outcome for group in ("device", "operators") for end, outcome in ends.items()}
    assert outcomes == expected
    assert findings["device/dies"]["detail"] == "its process ended with signal 11: an illegal memory access"
    assert findings["miniature/start"]["detail"].endswith("status 1: no module named tokenizers")
    assert "FAIL  device/dies  its process ended with signal 11" in printed
    assert '"warnings": {"device": ["[W:onnxruntime:Default, a.cc:1] so slow"]' in printed


def test_a_check_that_hangs_is_ended_when_time_is_out(bundle: Path) -> None:
    _, findings, _ = run(bundle, "--only", "geometry", "--seconds", "4")
    *_, last = findings.values()
    assert (last["outcome"], last["detail"]) == ("SKIP", "no time is left")


def test_a_group_whose_checks_all_end_their_process_is_given_up(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{end}{number}" for number in range(4) for end in ("raises", "dies")]
    monkeypatch.setenv("GROUP_ENDS", " ".join(names))
    _, findings, _ = run(bundle, "--only", "operators")
    outcomes = [finding["outcome"] for finding in findings.values()]
    assert outcomes == ["PASS", *["FAIL"] * 5, *["SKIP"] * 3]
    assert findings["operators/dies3"]["detail"] == "5 checks in a row ended their process"
    monkeypatch.setenv("GROUP_ENDS", " ".join(f"right{index} {name}" for index, name in enumerate(names)))
    _, findings, _ = run(bundle, "--only", "operators")
    assert not [finding for finding in findings.values() if finding["outcome"] == "SKIP"]


def test_without_a_device_nothing_else_is_tried(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUP_ENDS", "found right")
    _, findings, _ = run(bundle)
    outcomes = {name: finding["outcome"] for name, finding in findings.items()}
    skipped = dict.fromkeys(("operators", "miniature", "geometry"), "SKIP")
    assert outcomes == {"bundle": "PASS", "device/found": "FAIL", "device/right": "PASS"} | skipped
    assert findings["operators"]["detail"] == "there is no device to run on: see device/found"


def test_without_time_nothing_runs_and_everything_is_said(bundle: Path) -> None:
    status, findings, _ = run(bundle, "--seconds", "0")
    assert status == 0
    assert [finding["outcome"] for finding in findings.values()] == ["PASS", *["SKIP"] * 4]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "transfer-2" / "checks.2").unlink(), "transfer-2/checks.2 is missing: copy all"),
        (
            lambda folder: (folder / "transfer-1" / "checks.1").write_bytes(b"x"),
            "transfer-1/checks.1 is damaged: copy it",
        ),
        (
            lambda folder: (folder / BUNDLE_JSON).write_text('{"python": "2.7", "archives": []}'),
            "its packages are for Python 2.7, and this is 3",
        ),
    ],
)
def test_a_bundle_that_cannot_be_used_says_why(bundle: Path, harm: Any, message: str) -> None:
    harm(bundle)
    status, findings, _ = run(bundle)
    assert status == 1
    assert findings["bundle"]["outcome"] == "FAIL"
    assert message in findings["bundle"]["detail"]


def test_a_folder_that_is_no_bundle_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(CHECK), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is no bundle" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_script_needs_the_standard_library_alone() -> None:
    command = [sys.executable, "-I", "-S", str(CHECK), "--help"]  # without the folder of installed packages
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
