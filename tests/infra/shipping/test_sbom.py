"""The list of what is shipped: it is CycloneDX 1.6, it is the lock's, and an unknown licence stops it."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from infra.shipping.image_root import ROOT
from infra.shipping.licences import is_allowed
from infra.shipping.lock_file import lock_path, read_lock
from infra.shipping.sbom import Bom, SbomError, check_packages, make_bom, notice


@pytest.fixture(scope="module")
def bom(serving_tree: Path) -> Bom:
    return make_bom(serving_tree)


def test_every_package_of_the_lock_is_listed_with_an_spdx_licence(bom: Bom) -> None:
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom)) is None
    names = {component["name"].lower().replace("_", "-") for component in bom["components"]}
    assert names == {pin.name for pin in read_lock(lock_path("cpu"))} | {"qwonnx"}
    assert all(is_allowed(component["licenses"][0]["expression"]) for component in bom["components"])
    assert str(ROOT) not in json.dumps(bom), "a path of this machine"


def test_the_notice_has_every_licence(bom: Bom, serving_tree: Path) -> None:
    text = notice(serving_tree, bom)
    for component in bom["components"]:
        assert f"{component['name']} {component['version']}: " in text
    for words in ("Apache License", "Permission is hereby granted", "Redistributions of source code", "libgfortran"):
        assert words in text
    assert "Its wheel has no licence file" not in text


def test_a_tree_that_is_not_the_locks_is_refused(bom: Bom) -> None:
    changed = copy.deepcopy(bom)
    for component in changed["components"]:
        component["version"] = "9.9" if component["name"] == "uvicorn" else component["version"]
    # This environment's packages may be newer than the lock, so only the changed one is looked for.
    with pytest.raises(SbomError, match=r"not that of server-cpu\.txt: .*uvicorn 9\.9"):
        check_packages(changed, "cpu")


@pytest.mark.parametrize("licence", ["AGPL-3.0-only", None])
def test_a_licence_that_is_not_on_the_list_ends_it(licence: str | None, serving_tree: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for folder in serving_tree.glob("*.dist-info"):
        shutil.copytree(folder, tree / folder.name)
    (tree / "other-1.0.dist-info").mkdir()
    lines = ["Metadata-Version: 2.4", "Name: other", "Version: 1.0"]
    lines += [f"License-Expression: {licence}"] if licence else []
    (tree / "other-1.0.dist-info" / "METADATA").write_text("\n".join([*lines, "", ""]))
    command = [sys.executable, "-m", "infra.shipping.sbom", str(tree)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert f"other 1.0: {licence or 'no licence'}" in run.stderr
    assert list(tmp_path.glob("tree.*")) == [], "nothing is written"


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("MIT AND AGPL-3.0-only", False),
        ("MIT OR AGPL-3.0-only", True),
        ("(MIT OR GPL-2.0-only) AND (0BSD OR SSPL-1.0)", True),
        ("GPL-3.0-or-later WITH GCC-exception-3.1", True),
        ("GPL-3.0-or-later", False),
        ("License :: OSI Approved :: MIT License", False),
        ("MIT License", False),
        ("", False),
    ],
)
def test_an_expression_is_allowed_if_a_choice_of_it_is(expression: str, allowed: bool) -> None:
    assert is_allowed(expression) is allowed
