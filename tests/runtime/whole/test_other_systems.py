"""A server's modules can be imported where POSIX has nothing to offer, as on Windows.

The program takes away what Windows lacks after other packages are imported, which know their systems themselves.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.fast

PROGRAM = textwrap.dedent(
    """
    import importlib, mmap, os, pkgutil, signal, socket, sys
    import asyncio, multiprocessing, subprocess, tempfile, shutil
    for package in ("numpy", "onnxruntime", "tokenizers", "jinja2", "llguidance", "msgspec", "starlette", "uvicorn",
                    "uvloop", "httptools", "httpx", "fsspec", "rich.console", "rich.progress", "rich.table", "typer",
                    "prometheus_client", "anyio", "starlette.responses", "starlette.applications",
                    "starlette.middleware"):
        try:
            importlib.import_module(package)
        except ImportError:
            pass
    for name in ("fcntl", "resource", "termios", "pwd", "grp", "tty", "pty", "readline", "syslog"):
        sys.modules[name] = None
    lacking = {
        os: ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "preadv", "pread", "pwrite", "sysconf", "nice",
             "posix_fadvise", "sched_getaffinity", "getuid", "geteuid", "fork", "getpgid", "killpg", "mkfifo",
             "fchmod", "chown", "getloadavg", "sync", "register_at_fork"),
        mmap: tuple(name for name in dir(mmap) if name.startswith(("MADV_", "MAP_", "PROT_"))),
        signal: ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGCHLD", "SIGALRM", "SIGPIPE", "SIGQUIT", "setitimer"),
        socket: ("AF_UNIX",),
    }
    for module, names in lacking.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    import qwonnx.handlers, qwonnx.runtime
    # Handlers that are configured while they are imported, and what needs packages of extras.
    left_out = ("__main__", "libqwonnx_native", "google_functions", "azure_functions", "lambda_runtime", "aws_lambda")
    for root in (qwonnx.runtime, qwonnx.handlers):
        for found in pkgutil.walk_packages(root.__path__, root.__name__ + "."):
            if found.name.endswith(left_out) or ".handlers.ray" in found.name:
                continue
            try:
                importlib.import_module(found.name)
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] in ("qwonnx", *sys.stdlib_module_names):
                    print(found.name, repr(error))
            except Exception as error:
                print(found.name, repr(error))
    print("imported")
    """
)


def test_every_module_of_a_server_is_imported_without_posix() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("imported\n", 0), done.stderr[-2000:]


def test_an_export_is_refused_in_one_line_on_windows() -> None:
    program = (
        "import os; from qwonnx.export import pipeline; os.name = 'nt'\n"
        "try: pipeline.check_system()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(
        "ExportError reading checkpoints needs Linux or another POSIX system with preadv, and this is "
    )
