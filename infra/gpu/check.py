"""Check a GPU: unpack the folder that `python -m infra.gpu.bundle` made, and run its checks. Standard library only.

    python check.py FOLDER [--seconds 540] [--only GROUP ...] [--values unchecked]

Each check prints PASS, FAIL or SKIP with a reason, and none stops the others: a group runs in a process of its own, and
after a check that ends it, the rest runs in a new one. The last line is a JSON object with all findings, figures and
warnings, which FOLDER/results.json has too, from the first check on. Status 0: none failed; 1: some did; 2: there is no
bundle.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

BUNDLE_JSON = "bundle.json"
# The most valuable first: time may run out.
GROUPS = ("device", "operators", "miniature", "geometry")
DEVICE = "device/found"  # without it, nothing else can pass
_RAISED = 3  # the status of a group that ends after a check
_MOST_ENDS = 5  # checks in a row that end their process; then the group is given up, because each costs a new start
_LIBRARY_FOLDERS = ("/usr/local/cuda/lib64",)
_WARNING = re.compile(r"\[[WEF]:onnxruntime")
_MOST_WARNINGS = 20  # of a group


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=540, help="after so many, what is left is skipped")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, metavar="GROUP")
    parser.add_argument("--values", choices=("checked", "unchecked"), default="checked")
    options = parser.parse_args()
    try:
        bundle = json.loads((options.folder / BUNDLE_JSON).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"{options.folder} is no bundle ({error}): make one with python -m infra.gpu.bundle", file=sys.stderr)
        return 2
    report = Report(options.folder / "results.json", time.monotonic() + options.seconds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whoever stops this still gets the last line
    try:
        unpacked = unpack(options.folder, bundle, report)
        if unpacked is not None:
            for group in options.only:
                if report.findings.get(DEVICE, {}).get("outcome") == "FAIL":
                    report.add(group, "SKIP", f"there is no device to run on: see {DEVICE}")
                    continue
                run_group(group, unpacked, options.values, report)
                report.read_log(group, unpacked / f"{group}.log")
    finally:
        print(report.as_json(), flush=True)
    return int(report.has_failed)


class Report:
    """Findings, as they come.

    Args:
        path: of a file that always has all findings so far.
        deadline: after which nothing is begun.
    """

    def __init__(self, path: Path, deadline: float) -> None:
        self._path, self._deadline, self._start = path, deadline, time.monotonic()
        self.findings: dict[str, dict[str, Any]] = {}
        self.warnings: dict[str, list[str]] = {}

    @property
    def seconds_left(self) -> float:
        return self._deadline - time.monotonic()

    @property
    def has_failed(self) -> bool:
        return any(finding["outcome"] == "FAIL" for finding in self.findings.values())

    def add(self, name: str, outcome: str, detail: str, figures: dict[str, float] | None = None) -> None:
        self.findings[name] = {"outcome": outcome, "detail": detail, "figures": figures or {}}
        print(f"{outcome}  {name}  {detail}", flush=True)
        self._save()

    def read_log(self, group: str, log: Path) -> None:
        """Keep the different warnings and errors that ONNX Runtime wrote, without their times: the log may be lost."""
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
        found = (line[match.start() :].removesuffix("\x1b[m") for line in lines if (match := _WARNING.search(line)))
        self.warnings[group] = [line[:300] for line in dict.fromkeys(found)][:_MOST_WARNINGS]
        self._save()

    def as_json(self) -> str:
        outcomes = [finding["outcome"] for finding in self.findings.values()]
        counts = {outcome: outcomes.count(outcome) for outcome in ("PASS", "FAIL", "SKIP")}
        seconds = round(time.monotonic() - self._start, 1)
        return json.dumps({"seconds": seconds, **counts, "warnings": self.warnings, "findings": self.findings})

    def _save(self) -> None:
        self._path.write_text(self.as_json(), encoding="utf-8")


def unpack(folder: Path, bundle: dict[str, Any], report: Report) -> Path | None:
    """The folder with all archives unpacked; None, with a finding, if one cannot be."""
    python = ".".join(platform.python_version_tuple()[:2])
    if bundle["python"] not in (None, python):
        report.add("bundle", "FAIL", f"its packages are for Python {bundle['python']}, and this is {python}")
        return None
    target = folder.resolve() / "unpacked"
    for archive in bundle["archives"]:
        note = target / f"{archive['name']}.sha256"
        if note.is_file() and note.read_text(encoding="utf-8") == archive["sha256"]:
            continue
        content = bytearray()
        for part in archive["parts"]:
            path = folder / part["path"]
            piece = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(piece).hexdigest() != part["sha256"]:
                fault = "is damaged: copy it again" if piece else "is missing: copy all of the bundle's folders"
                report.add("bundle", "FAIL", f"{part['path']} {fault}")
                return None
            content += piece
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:*") as stream:
            stream.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 has none
            stream.extractall(target)
        note.write_text(archive["sha256"], encoding="utf-8")
    names = ", ".join(archive["name"] for archive in bundle["archives"])
    report.add("bundle", "PASS", f"{names}; {bundle['onnxruntime']}")
    return target


def run_group(group: str, folder: Path, values: str, report: Report) -> None:
    """Run a group's checks, in another process after each one that ends its process."""
    after, ends = "", 0
    (folder / f"{group}.log").unlink(missing_ok=True)
    while True:
        run = Run(group, folder, values, after, report)
        if run.pending is None:
            report.add(f"{group}/start", *(("SKIP", "no time is left") if run.is_late else ("FAIL", run.reason)))
            return
        after = run.last
        if not run.is_late and run.status != _RAISED and run.pending:  # it ended in the middle of a check
            after = run.pending.pop(0)
            report.add(after, "FAIL", run.reason)
        others = run.num_done - (run.status == _RAISED)
        ends = 1 if others else ends + 1
        if run.is_late or ends == _MOST_ENDS:
            why = "no time is left" if run.is_late else f"{ends} checks in a row ended their process"
            for name in run.pending:
                report.add(name, "SKIP", why)
            return
        if not run.pending:
            return


class Run:
    """One process of a group.

    Attributes:
        pending: the checks that it has not reported, in order; None if it did not begin.
        num_done, last: how many it reported, and the last of them.
        status: of the process.
        is_late: it was ended because time ran out.
        reason: a line for what ended it.
    """

    def __init__(self, group: str, folder: Path, values: str, after: str, report: Report) -> None:
        self.pending: list[str] | None = None
        self.num_done, self.last = 0, after
        self.is_late = report.seconds_left <= 0
        self.status, self.reason = 0, ""
        if self.is_late:
            return
        command = [sys.executable, "-m", "infra.gpu.on_device", group, str(folder), "--values", values]
        log = folder / f"{group}.log"
        with log.open("ab") as errors:
            process = subprocess.Popen(
                [*command, "--after", after],
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,  # whose modules Python prefers: not those of a clone
                env=environment(folder),
                text=True,
            )
        timer = threading.Timer(report.seconds_left, self._end, [process])
        timer.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                self._take(json.loads(line), report)
            self.status = process.wait()
        finally:
            timer.cancel()
            process.kill()
        self.reason = self._reason(log)

    def _end(self, process: subprocess.Popen[str]) -> None:
        self.is_late = True
        process.kill()

    def _take(self, document: dict[str, Any], report: Report) -> None:
        if self.pending is None:
            self.pending = document["checks"]
            return
        self.num_done, self.last = self.num_done + 1, document["name"]
        self.pending.remove(self.last)
        report.add(self.last, "PASS" if document["passed"] else "FAIL", document["detail"], document["figures"])

    def _reason(self, log: Path) -> str:
        ended = f"signal {-self.status}" if self.status < 0 else f"status {self.status}"
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        return f"its process ended with {ended}: {last[:200]}"


def environment(folder: Path) -> dict[str, str]:
    """The variables of a group's process: the bundle's packages, and where NVIDIA's libraries are."""
    found = (path for root in sys.path for path in glob.glob(f"{root or '.'}/nvidia/*/lib"))
    libraries = [os.environ.get("LD_LIBRARY_PATH", ""), *sorted(set(found)), *_LIBRARY_FOLDERS]
    modules = [str(folder / "site"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, modules)),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        "CUDA_MODULE_LOADING": "LAZY",
        "PYTHONUNBUFFERED": "1",
    }


if __name__ == "__main__":
    sys.exit(main())
