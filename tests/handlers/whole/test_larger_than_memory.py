"""`qwonnx serve --memory`: a model whose experts do not fit answers as in memory, and the process keeps the limit."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.native.library import NativeLibrary
from tests.checkpoints import write_tiny
from tests.handlers.cli.commands import qwonnx
from tests.handlers.whole.served_process import ServedProcess, process_serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs madvise")

# Experts of 1.8 MB in int4, 35 MB in all: several times what the rest of a process needs more at one time than another.
TOP_K, NUM_LAYERS = 2, 4
GEOMETRY = {
    "moe_intermediate_size": 2048,
    "hidden_size": 512,
    "num_experts": 5,
    "num_experts_per_tok": TOP_K,
    "num_hidden_layers": NUM_LAYERS,
}
MB = 10**6


@pytest.fixture(scope="module")
def artifact(library: NativeLibrary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write_tiny(folder / "checkpoint", text_overrides=GEOMETRY, vision=False)
    export_checkpoint(folder / "checkpoint", folder / "artifact", ExportOptions(weights="int4", target="cpu"))
    return folder / "artifact"


def answers(server: ServedProcess) -> list[str]:
    found = []
    for prompt in ("Hello", "a b c d " * 60, "The museum of clocks"):
        body = {"model": server.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 24}
        reply = server.post(json.dumps({**body, "temperature": 0}).encode())
        assert reply.status == 200, reply.content
        found.append(json.loads(reply.content)["choices"][0]["message"]["content"])
    return found


def test_a_model_whose_experts_do_not_fit_answers_as_in_memory(artifact: Path, tmp_path: Path) -> None:
    size = sum(entry.size for entry in open_artifact(artifact).manifest.files if entry.path.endswith(".bin"))
    common = ("--threads", 1, "--max-num-seqs", 1, "--cache-bytes", "20MB", "--prefix-cache-bytes", 0)
    refused = qwonnx("serve", artifact, "--port", 0, *common, "--memory", "50MB")
    assert refused.returncode == 2
    least = re.search(r"memory_bytes is 50000000 and this model needs (\d+) at least: give more", refused.stderr)
    assert least, refused.stderr
    with process_serving(artifact, tmp_path / "all.log", *common, "--memory", 0) as server:
        expected = answers(server)
    assert "experts take turns" not in server.log.read_text()
    limit = int(least[1]) + 9 * MB
    with process_serving(artifact, tmp_path / "limited.log", *common, "--memory", limit) as server:
        assert answers(server) == expected
        assert server.resident_bytes() < limit
    log = server.log.read_text()
    turns = re.search(r"weights take ([\d.]+) MB and the limit .* experts take turns in ([\d.]+) MB", log)
    assert turns, log
    assert float(turns[2]) < float(turns[1]) * 0.8 < size / 1e6


def test_uses_of_experts_are_baked_and_read(artifact: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The oldest clock of the museum strikes every hour. " * 40)
    baked = qwonnx("bake", artifact, "--experts", text, "--threads", 1)
    assert baked.returncode == 0, baked.stderr
    found = re.search(r"experts\.json: uses of experts by (\d+) tokens", baked.stdout)
    assert found, baked.stdout
    document = json.loads((artifact / "experts.json").read_text())
    *most, last = (sum(layer) for layer in document["uses"])
    assert len(most) == NUM_LAYERS - 1
    assert all(uses >= int(found[1]) * TOP_K for uses in most)
    assert 30 * TOP_K <= last < most[0]  # of a prompt, the last layer computes only the token that is continued
    assert document["artifact"] == open_artifact(artifact).id
