"""The unit: systemd knows its settings, and it exposes little."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.manifests.documents import INFRA

pytestmark = [
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze"),
]

UNIT = INFRA / "systemd" / "qwonnx.service"
_PROGRAM = "/opt/qwonnx/bin/qwonnx"
# systemd's own scale: 0 exposes nothing, 10 everything. A service without settings has 9.6.
MAX_EXPOSURE = 2.0


def verify(text: str, folder: Path) -> str:
    """What systemd-analyze says of a unit; nothing if it is right. The program is one that exists here."""
    unit = folder / UNIT.name
    unit.write_text(text.replace(_PROGRAM, sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return "\n".join(line for line in run.stderr.splitlines() if UNIT.name in line)


def test_systemd_knows_every_setting(tmp_path: Path) -> None:
    assert verify(UNIT.read_text(encoding="utf-8"), tmp_path) == ""


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("ProtectSystem=strict", "ProtectSytem=strict"),
        ("Type=exec", "Type=server"),
        ("TimeoutStopSec=40", "TimeoutStopSec=soon"),
        ("SystemCallArchitectures=native", "SystemCallArchitectures=pdp11"),
    ],
)
def test_systemd_finds_what_is_spoilt(good: str, bad: str, tmp_path: Path) -> None:
    text = UNIT.read_text(encoding="utf-8")
    assert text.count(good) == 1
    assert verify(text.replace(good, bad), tmp_path) != ""


def exposure(text: str, folder: Path) -> float:
    unit = folder / UNIT.name
    unit.write_text(text)
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", run.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze does not rate files: {run.stderr.strip()[:100]}")
    return float(found[1])


def test_it_exposes_little(tmp_path: Path) -> None:
    text = UNIT.read_text(encoding="utf-8")
    rated = exposure(text, tmp_path)
    assert rated <= MAX_EXPOSURE
    assert exposure(re.sub(r"^(Protect|Private|Restrict|System|Capab|Dynamic).*\n", "", text, flags=re.M), tmp_path) > 5


def test_it_stops_after_running_answers_have_ended() -> None:
    found = re.search(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    assert int(found[1]) > 20 + 5
