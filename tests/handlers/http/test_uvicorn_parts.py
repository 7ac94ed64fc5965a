"""uvicorn without its command line, and whole for others in the same process."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.fast

# All modules of uvicorn that need no other package than a server has.
_OTHERS = "uvicorn.main, uvicorn.supervisors, uvicorn.lifespan.on, uvicorn.lifespan.off, uvicorn.protocols.http.auto"


def _prints(program: str) -> list[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


def test_the_command_line_is_imported_when_somebody_asks_for_it() -> None:
    program = (
        "import sys\n"
        "from qwonnx.handlers.http import uvicorn_parts\n"
        "import uvicorn\n"
        "print('click' in sys.modules, hasattr(uvicorn, '__wrapped__'), uvicorn.Config is uvicorn_parts.Config)\n"
        "from uvicorn import run\n"
        "print('click' in sys.modules, uvicorn.Config is uvicorn_parts.Config)\n"
        "print(uvicorn.Server is uvicorn_parts.Server, uvicorn.__version__ != '', hasattr(uvicorn, 'nothing'))\n"
    )
    assert _prints(program) == ["False", "False", "True", "True", "True", "True", "True", "False"]


@pytest.mark.parametrize("first", ["qwonnx.handlers.http.uvicorn_parts", "uvicorn"])
@pytest.mark.parametrize("second", _OTHERS.split(", "))
def test_every_part_of_it_can_be_imported_before_and_after(first: str, second: str) -> None:
    program = (
        f"import {first}, {second}\n"
        "from qwonnx.handlers.http import uvicorn_parts\n"
        "import uvicorn\n"
        "print(uvicorn.Server is uvicorn_parts.Server, callable(uvicorn.run))\n"
    )
    assert _prints(program) == ["True", "True"]
