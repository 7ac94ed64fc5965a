"""Locks: they agree with pyproject.toml, have a hash for each package, and leave out what no server imports."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from infra.shipping.lock_file import Pin, canonical_name, lock_path, lock_text, read_lock
from infra.shipping.locks import PYTHONS, VARIANTS, Variant, imported_closure, requirements_of

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_lock_fits_the_requirements_of_the_project(variant: Variant) -> None:
    pins = {pin.name: pin for pin in read_lock(lock_path(variant.name))}
    for requirement in map(Requirement, requirements_of(variant)):
        if canonical_name(requirement.name) in variant.left_out:
            continue
        pin = pins[canonical_name(requirement.name)]
        assert requirement.specifier.contains(pin.version), f"{requirement}: make the locks again"
    assert not pins.keys() & variant.left_out.keys()


def test_packages_that_are_compiled_have_a_wheel_for_each_python_and_processor() -> None:
    pins = {pin.name: pin for pin in read_lock(lock_path("cpu"))}
    for name in ("numpy", "onnxruntime", "msgspec", "markupsafe"):
        assert len(pins[name].hashes) == len(PYTHONS) * 2, name
    for name in ("tokenizers", "llguidance"):  # for every Python (abi3)
        assert len(pins[name].hashes) == 2, name
    for name in ("anyio", "uvicorn", "starlette", "jinja2"):
        assert len(pins[name].hashes) == 1, name


def test_a_lock_that_is_written_is_read_again(tmp_path: Path) -> None:
    pins = (Pin("one", "1.0", ("0" * 64, "f" * 64)), Pin("two", "2.0+local", ("a" * 64,)))
    path = tmp_path / "lock.txt"
    path.write_text(lock_text(reversed(pins), ["why"]))
    assert read_lock(path) == pins


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("one==1.0", "no exact version with sha256 hashes"),
        ("one>=1.0 --hash=sha256:" + "0" * 64, "no exact version"),
        ("one==1.0 --hash=md5:" + "0" * 32, "no exact version"),
        ("--index-url https://elsewhere.example", "no exact version"),
        (f"one==1.0 --hash=sha256:{'0' * 64}\nOne==2.0 --hash=sha256:{'0' * 64}", "has one twice"),
    ],
)
def test_a_lock_without_hashes_is_refused(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "lock.txt"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        read_lock(path)


def test_what_only_a_left_out_package_asks_for_is_left_out_too() -> None:
    requires = {
        "server": ["Shared>=1", "huggingface-hub<3", "extra-only; extra == 'full'", "old; python_version < '3'"],
        "huggingface-hub": ["hf-xet"],
        "shared": ["server"],  # a circle
        "extra-only": [],
        "hf-xet": [],
    }
    assert imported_closure(["server"], requires) == {"server", "shared"}
    assert imported_closure(["server[full]"], requires) == {"server", "shared", "extra-only"}
    requires["other"] = ["server[full]"]  # an extra of a package that was found without it
    for wanted in (["server", "other"], ["other", "server"]):
        assert imported_closure(wanted, requires) == {"server", "shared", "extra-only", "other"}
