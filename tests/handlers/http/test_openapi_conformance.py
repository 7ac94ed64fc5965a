"""schemathesis against a live server with the document of /openapi.json. `make soak` runs it.

It needs `pip install schemathesis` in an environment of its own, whose command QWONNX_SCHEMATHESIS names.
QWONNX_SCHEMATHESIS_EXAMPLES (20) is the number of examples of each operation: some 10,000 requests, in minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qwonnx.runtime.artifact.folder import Artifact
from tests.handlers.serving import serving

COMMAND = os.environ.get("QWONNX_SCHEMATHESIS", "schemathesis")
LEAST_CASES = 5_000
EXAMPLES = os.environ.get("QWONNX_SCHEMATHESIS_EXAMPLES", "20")
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(shutil.which(COMMAND) is None, reason="schemathesis is not installed"),
]

# A request that the document allows may contradict itself, or be too long for the model: stated_refusals.py lists why.
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
            env={**os.environ, "SCHEMATHESIS_HOOKS": "stated_refusals", "PYTHONPATH": str(Path(__file__).parent)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counted = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert counted is not None, done.stdout[-2000:]
    assert int(counted[2]) >= LEAST_CASES, counted[0]
