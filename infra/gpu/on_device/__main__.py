"""Run one group of checks: `python -m infra.gpu.on_device GROUP FOLDER`. check.py starts it, once for each group.

Prints a JSON object a line: first the names of all checks that it will run, then the finding of each. A check that
raises ends the process with status 3, because a kernel that failed leaves a CUDA process useless. check.py then starts
another one for the checks after it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

import qwonnx.runtime  # noqa: F401  (before ONNX Runtime, which would report to its maker)
from infra.gpu.on_device.finding import Bundle, Check

GROUPS = ("device", "operators", "miniature", "geometry")
RAISED = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--after", default="", help="begin after the check of this name")
    parser.add_argument("--values", choices=("checked", "unchecked"), default="checked")
    options = parser.parse_args()
    lines, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no finding
    bundle = Bundle(options.folder, options.values == "checked")
    checks: list[Check] = list(importlib.import_module(f"infra.gpu.on_device.{options.group}").checks(bundle))
    names = [check.name for check in checks]
    checks = checks[names.index(options.after) + 1 :] if options.after else checks
    _write(lines, {"checks": [check.name for check in checks]})
    for check in checks:
        start = time.perf_counter()
        try:
            found = check.run()
        except Exception as error:  # noqa: BLE001  (whatever it is, it is this check's finding)
            traceback.print_exc()
            detail = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            _write(lines, {"name": check.name, "passed": False, "detail": detail, "figures": {}})
            return RAISED
        figures = {**found.figures, "check_seconds": round(time.perf_counter() - start, 3)}
        _write(lines, {"name": check.name, "passed": found.passed, "detail": found.detail, "figures": figures})
    return 0


def _write(lines: IO[str], document: dict[str, Any]) -> None:
    print(json.dumps(document), file=lines, flush=True)


if __name__ == "__main__":
    sys.exit(main())
