"""The parts of uvicorn that a server uses, without its command line.

The body of uvicorn's package imports click, multiprocessing and the supervisors of `python -m uvicorn`: 26 modules that
take as long as all of Starlette. So the package is made here as Python makes it, and its body runs when somebody asks
for a name that only the body has, such as `uvicorn.run`. No other part of uvicorn needs the body.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from typing import Any


def _package() -> Any:
    """uvicorn before its body; if it was imported before, as it is."""
    if "uvicorn" in sys.modules:
        return sys.modules["uvicorn"]
    spec = find_spec("uvicorn")
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
    package: Any = module_from_spec(spec)
    loader = spec.loader

    def attribute(wanted: str) -> Any:
        if wanted.startswith("__") and wanted not in ("__all__", "__version__"):
            raise AttributeError(wanted)  # others look for these in any module
        del package.__getattr__
        loader.exec_module(package)
        return getattr(package, wanted)

    package.__getattr__ = attribute
    sys.modules["uvicorn"] = package
    return package


_uvicorn = _package()

from uvicorn.config import Config as Config  # noqa: E402 - after the package is there
from uvicorn.protocols.http.h11_impl import H11Protocol as H11Protocol  # noqa: E402
from uvicorn.server import Server as Server  # noqa: E402

_uvicorn.Config, _uvicorn.Server = Config, Server  # other parts of uvicorn ask the package for them
