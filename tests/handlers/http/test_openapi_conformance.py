"""schemathesis against a live server with the document of /openapi.json. `make soak` runs it.

It needs `pip install schemathesis` in an environment of its own, whose command QWONNX_SCHEMATHESIS names.
QWONNX_SCHEMATHESIS_EXAMPLES (60) is the number of examples of each operation.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from qwonnx.runtime.artifact.folder import Artifact
from tests.handlers.serving import serving

COMMAND = os.environ.get("QWONNX_SCHEMATHESIS", "schemathesis")
EXAMPLES = os.environ.get("QWONNX_SCHEMATHESIS_EXAMPLES", "60")
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(shutil.which(COMMAND) is None, reason="schemathesis is not installed"),
]

# A request that the document allows may contradict itself, or be too long for the model: a 400 says so.
SETTINGS = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "400", "404"]
"""


def test_no_request_by_the_document_fails_the_server_or_gets_an_undocumented_answer(
    tiny_fp32: Artifact, tmp_path: Path
) -> None:
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    with serving(tiny_fp32.folder) as served:
        done = subprocess.run(
            [
                *(COMMAND, "--config-file", str(tmp_path / "schemathesis.toml"), "run", f"{served.url}/openapi.json"),
                *("--checks", "all", "--max-examples", EXAMPLES, "--request-timeout", "5", "--no-color"),
                *("--generation-database", "none", "--seed", "1"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
