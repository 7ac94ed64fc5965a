"""Every operator of the graph alone, with the inputs and outputs of its function body."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from infra.gpu.on_device.case import OperatorCase, load_cases, relative_error
from infra.gpu.on_device.finding import Bundle, Check, Finding
from infra.gpu.on_device.session import open_session, run


def checks(bundle: Bundle) -> Iterator[Check]:
    for folder in sorted(path.parent for path in (bundle.folder / "operators").glob("*/cases.json")):
        for case in load_cases(folder):
            yield Check(f"operators/{folder.name}/{case.name}", partial(_check, bundle, folder, case))


def _check(bundle: Bundle, folder: Path, case: OperatorCase) -> Finding:
    arrays = np.load(folder / case.arrays)
    inputs = {name: arrays[f"input:{name}"].astype(dtype) for name, dtype in case.inputs.items()}
    found = run(open_session(folder / case.graph), inputs, case.in_place, case.on_host)
    errors = {}
    for name, dtype in case.outputs.items():
        expected = arrays[f"expected:{name}"]
        if found[name].shape != expected.shape or found[name].dtype != dtype:
            form = f"{found[name].dtype} {found[name].shape}, not {dtype} {expected.shape}"
            return Finding(False, f"{name} is {form}")
        errors[name] = relative_error(found[name], expected)
    worst = max(errors, key=lambda name: errors[name] / case.bound(name))
    detail = f"error {errors[worst]:.1e} of at most {case.bound(worst):.1e} ({worst})"
    return bundle.judged(errors[worst] <= case.bound(worst), detail, {"error": errors[worst]})
