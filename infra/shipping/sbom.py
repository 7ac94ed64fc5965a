"""Lists what a server's tree contains: `python -m infra.shipping.sbom TREE [--variant cuda]`.

Writes TREE.cdx.json (CycloneDX 1.6, by cyclonedx-py) and TREE.NOTICE (every licence's text). It fails if the tree is
not the lock's, or a licence is not on the list (licences.py). Packages are listed. What was compiled into their
libraries is not, but for what BUNDLED says: their makers' own notices are part of NOTICE where a wheel has them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.shipping.image_root import ROOT
from infra.shipping.licences import ALLOWED, BUNDLED, CONCLUDED, is_allowed
from infra.shipping.lock_file import canonical_name, lock_path, read_lock

SPECIFICATION = "1.6"
# Words that a licence's file begins with.
_LICENCE_FILES = ("licen", "copying", "notice", "thirdpartynotices", "authors")

Bom = dict[str, Any]


class SbomError(Exception):
    """The tree must not be shipped as it is."""


def make_bom(tree: Path, allowed: frozenset[str] = ALLOWED) -> Bom:
    """The packages of a tree, or of a folder that pip installed into, with their licences as SPDX expressions.

    Args:
        tree: the folder.
        allowed: the licences that may occur.

    Raises:
        SbomError: a licence is not on the list, or unknown; the message names all of them.
    """
    bom = _cyclonedx(tree.resolve())
    unknown = []
    for component in bom["components"]:
        stated = [each.get("expression") or each["license"].get("id") or each["license"].get("name")
                  for each in component.get("licenses", [])]  # fmt: skip
        name = canonical_name(component["name"])
        expressions = [CONCLUDED.get((name, words), words) for words in stated or [""]]
        if name in BUNDLED:
            expressions.append(BUNDLED[name])
        expressions = [each for each in dict.fromkeys(expressions) if each]
        expression = " AND ".join(f"({each})" if len(expressions) > 1 else each for each in expressions)
        if not expression or not is_allowed(expression, allowed):
            unknown.append(f"{component['name']} {component['version']}: {expression or 'no licence'}")
            continue
        component["licenses"] = [{"expression": expression, "acknowledgement": "concluded"}]
    if unknown:
        raise SbomError(
            "licences that are not on the list of infra/shipping/licences.py: " + "; ".join(sorted(unknown))
        )
    return bom


def check_packages(bom: Bom, variant: str) -> None:
    """Compare the packages with a lock's.

    Raises:
        SbomError: a package is missing, is another version, or is not in the lock.
    """
    found = {(canonical_name(each["name"]), each["version"]) for each in bom["components"]}
    found = {each for each in found if each[0] != "qwonnx"}
    locked = {(pin.name, pin.version) for pin in read_lock(lock_path(variant))}
    if found != locked:
        differing = sorted(" ".join(each) for each in found ^ locked)
        raise SbomError(f"the tree is not that of {lock_path(variant).name}: {', '.join(differing)}; build it again")


def notice(tree: Path, bom: Bom) -> str:
    """The text that goes with the tree: each package, its licence, and the licence files that its wheel has."""
    parts = ["This is qwonnx with the packages that its server needs. Their licences follow.\n"]
    parts += [_row(component) for component in bom["components"]]
    apache = (ROOT / "LICENSE").read_text(encoding="utf-8")
    for component in bom["components"]:
        texts = list(_licence_texts(tree, component["name"]))
        if not texts and "Apache-2.0" in component["licenses"][0]["expression"]:
            texts = [apache]
        parts.append(f"\n{'=' * 80}\n{_row(component)}{'=' * 80}\n")
        parts += texts or ["Its wheel has no licence file.\n"]
    return "".join(parts)


def _row(component: dict[str, Any]) -> str:
    return f"{component['name']} {component['version']}: {component['licenses'][0]['expression']}\n"


def _licence_texts(tree: Path, name: str) -> Iterator[str]:
    wanted = canonical_name(name)
    for distribution in importlib.metadata.distributions(path=[str(tree)]):
        if canonical_name(distribution.metadata["Name"]) != wanted:
            continue
        metadata = next(tree.glob(f"{wanted.replace('-', '_')}-*.dist-info"), None)
        places = [folder for folder in (metadata, tree / wanted.replace("-", "_")) if folder and folder.is_dir()]
        for folder in places:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.name.lower().startswith(_LICENCE_FILES) and path.suffix != ".py":
                    yield path.read_text(encoding="utf-8", errors="replace").rstrip() + "\n\n"


def _cyclonedx(tree: Path) -> Bom:
    """cyclonedx-py asks an interpreter for its path, so it gets one that knows the tree only."""
    with tempfile.TemporaryDirectory() as folder:
        interpreter, out = Path(folder) / "python", Path(folder) / "bom.json"
        interpreter.write_text(
            f"#!{sys.executable} -S\nprint({json.dumps(json.dumps([str(tree)]))})\n", encoding="utf-8"
        )
        interpreter.chmod(0o755)
        command = [sys.executable, "-m", "cyclonedx_py", "environment", "--spec-version", SPECIFICATION]
        command += ["--output-format", "JSON", "--output-reproducible", "--no-validate", "--output-file", str(out)]
        run = subprocess.run([*command, str(interpreter)], capture_output=True, text=True, check=False)
        if run.returncode:
            raise SbomError(f"cyclonedx-py failed: {run.stderr.strip()[-500:]}")
        bom: Bom = json.loads(out.read_text(encoding="utf-8"))
    return bom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, help="what infra.shipping.image_root built")
    parser.add_argument("--variant", choices=("cpu", "cuda"), default="cpu", help="its lock")
    arguments = parser.parse_args()
    try:
        bom = make_bom(arguments.tree)
        check_packages(bom, arguments.variant)
    except SbomError as error:
        sys.exit(f"sbom: {error}")
    written = arguments.tree.with_name(arguments.tree.name + ".cdx.json")
    written.write_text(json.dumps(bom, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    texts = arguments.tree.with_name(arguments.tree.name + ".NOTICE")
    texts.write_text(notice(arguments.tree, bom), encoding="utf-8")
    print(f"{written}, {texts}: {len(bom['components'])} packages")


if __name__ == "__main__":
    main()
