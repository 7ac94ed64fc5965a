"""The command that installs a missing extra, from where this qwonnx came: it is not on PyPI."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse


def how_to_install(extra: str) -> str:
    """A command for a shell that adds an extra of qwonnx to this environment.

    A clone has a script that also chooses torch without CUDA and tested versions. A wheel is named again, with the
    extra. Without a trace of either, the command is the one for a clone.
    """
    source = _source()
    path = Path(unquote(urlparse(source).path))
    python = shlex.quote(sys.executable or "python3")
    if source and path.suffix == ".whl":
        return f"{python} -m pip install {shlex.quote(f'qwonnx[{extra}] @ {source}')}"
    if source and (path / "infra" / "install.py").is_file() and sys.prefix != sys.base_prefix:
        script, venv = shlex.quote(str(path / "infra" / "install.py")), shlex.quote(sys.prefix)
        return f"{python} {script} --venv {venv} --extras {extra}"
    return f"in a clone of qwonnx, python3 infra/install.py --venv .venv --extras {extra}"


def _source() -> str:
    """The URL that pip recorded for this installation (PEP 610), or an empty text."""
    from importlib.metadata import distributions  # 20 ms, which a server that lacks nothing need not spend

    for found in distributions(name="qwonnx"):  # a build in the current folder may hide the installed one
        try:
            url = json.loads(found.read_text("direct_url.json") or "{}").get("url")
        except ValueError:
            continue
        if isinstance(url, str) and url.startswith("file:"):
            return url
    return ""
