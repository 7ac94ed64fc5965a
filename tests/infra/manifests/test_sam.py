"""The SAM template: cfn-lint finds nothing, and the numbers are ones that Lambda takes, which cfn-lint does not check.

Limits: https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwonnx.handlers.configuration.environment import variables
from tests.infra.manifests.documents import INFRA
from tests.infra.programs import program

TEMPLATE = INFRA / "sam" / "template.yaml"
LIMITS = {"MemoryMegabytes": (128, 10_240), "TimeoutSeconds": (1, 900)}


def lint(path: Path) -> list[str]:
    """Codes of cfn-lint's findings, warnings too."""
    command = [sys.executable, program("cfn-lint", "cfn-lint"), "--format", "json", "--regions", "us-east-1"]
    run = subprocess.run([*command, "--template", str(path)], capture_output=True, text=True, check=False)
    assert run.stdout, run.stderr
    return [finding["Rule"]["Id"] for finding in json.loads(run.stdout)]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Knows the short forms of CloudFormation's functions."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: {suffix: node.value})


def read(text: str) -> dict[str, Any]:
    found = yaml.load(text, _Loader)
    assert isinstance(found, dict)
    return found


def complaints(template: dict[str, Any]) -> list[str]:
    """What Lambda would refuse, and what would not stream."""
    function, parameters = template["Resources"]["Function"]["Properties"], template["Parameters"]
    wrong = []
    for name, (least, most) in LIMITS.items():
        numbers = [parameters[name][key] for key in ("MinValue", "Default", "MaxValue")]
        if not least <= numbers[0] <= numbers[1] <= numbers[2] <= most:
            wrong.append(f"{name} is not within {least} to {most}")
    if function["MemorySize"] != {"Ref": "MemoryMegabytes"} or function["Timeout"] != {"Ref": "TimeoutSeconds"}:
        wrong.append("a number without limits")
    if function["FunctionUrlConfig"] != {"AuthType": "AWS_IAM", "InvokeMode": "RESPONSE_STREAM"}:
        wrong.append("the URL does not stream, or everybody may call it")
    if function["PackageType"] != "Image":
        wrong.append("an artifact does not fit a zip of 250 MB")
    given = function["Environment"]["Variables"]
    wrong += [f"{name} is no variable" for name in given if name not in {each.name for each in variables()}]
    return wrong


def test_cfn_lint_finds_nothing() -> None:
    assert lint(TEMPLATE) == []


def test_cfn_lint_finds_what_is_spoilt(tmp_path: Path) -> None:
    spoilt = tmp_path / "template.yaml"
    text = TEMPLATE.read_text(encoding="utf-8")
    text = text.replace("InvokeMode: RESPONSE_STREAM", "InvokeMode: STREAM")
    spoilt.write_text(text.replace("PackageType: Image", "PackageTipe: Image"))
    found = lint(spoilt)
    assert any(code.startswith("E") for code in found), found


def test_the_template_keeps_to_lambdas_limits() -> None:
    assert complaints(read(TEMPLATE.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda t: t["Parameters"]["MemoryMegabytes"].update(MaxValue=20_240), "MemoryMegabytes is not within"),
        (lambda t: t["Parameters"]["MemoryMegabytes"].update(Default=64), "MemoryMegabytes is not within"),
        (lambda t: t["Parameters"]["TimeoutSeconds"].update(MaxValue=3600), "TimeoutSeconds is not within"),
        (lambda t: t["Resources"]["Function"]["Properties"].update(MemorySize=20_240), "a number without limits"),
        (
            lambda t: t["Resources"]["Function"]["Properties"]["FunctionUrlConfig"].update(AuthType="NONE"),
            "does not stream, or everybody",
        ),
        (
            lambda t: t["Resources"]["Function"]["Properties"]["Environment"]["Variables"].update(QWONNX_ARTEFACT="x"),
            "QWONNX_ARTEFACT is no variable",
        ),
    ],
)
def test_a_spoilt_template_is_noticed(spoil: Callable[[dict[str, Any]], object], complaint: str) -> None:
    template = read(TEMPLATE.read_text(encoding="utf-8"))
    spoil(template)
    assert any(complaint in each for each in complaints(template))
