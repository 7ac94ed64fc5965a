"""The clean machine that the sessions share, and each one's reader."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.readers.machine import VARIABLE, CleanMachine, NoMachine, clean_machine
from tests.readers.reader import Reader, new_reader


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleanMachine]:
    """A Debian without anything of ours; kept if the variable names its folder."""
    kept = os.environ.get(VARIABLE)
    folder = Path(kept) if kept else tmp_path_factory.mktemp("machine")
    try:
        yield clean_machine(folder)
    except NoMachine as reason:
        pytest.skip(str(reason))
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def reader(machine: CleanMachine, request: pytest.FixtureRequest) -> Iterator[Reader]:
    """The user of a module's session, named by its READER. The home is removed afterwards: it takes gigabytes."""
    reader = new_reader(machine, request.module.READER)
    yield reader
    shutil.rmtree(reader.home, ignore_errors=True)
