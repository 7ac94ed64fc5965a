"""Artifacts of every schema since the first are read, and answer as when they were written. schemas/README.md says how
they were made."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from qwonnx.runtime import Engine, RuntimeSettings, SamplingParams
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.artifact.schemas import SCHEMA_VERSION
from tests.checkpoints.tiny import write_tiny

KEPT = Path(__file__).with_name("schemas")
ANSWERS = KEPT / "answers.json"
PROMPT, NUM_TOKENS = "The quick brown fox jumps", 8
SETTINGS = RuntimeSettings(num_threads=1, max_num_seqs=1, spin=False)
SCHEMAS = range(1, SCHEMA_VERSION + 1)
_WIDTHS = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 32,
}


def write_oldest_checkpoint(folder: Path) -> Path:
    """The checkpoint of all these artifacts."""
    return write_tiny(folder, text_overrides=_WIDTHS, tie_word_embeddings=True, vision=False)


def unpacked(schema: int, folder: Path) -> Path:
    with tarfile.open(KEPT / f"{schema}.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 has none
        archive.extractall(folder)
    return folder / str(schema)


def answer(artifact: Path) -> dict[str, Any]:
    """Tokens of the likeliest answer, and their log probabilities."""
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, logprobs=0)
    with Engine.open(artifact, SETTINGS) as engine:
        outputs = list(engine.generate(engine.tokenizer.encode(PROMPT), params))
    chosen = [output.logprobs.chosen.logprob for output in outputs if output.logprobs is not None]
    return {"token_ids": [token for output in outputs for token in output.token_ids], "logprobs": chosen}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_an_artifact_of_each_schema_answers_as_it_did(schema: int, tmp_path: Path) -> None:
    artifact = unpacked(schema, tmp_path)
    assert open_artifact(artifact).manifest.schema_version == schema
    expected, given = json.loads(ANSWERS.read_text())[str(schema)], answer(artifact)
    # Weights are random, so later tokens may differ where two of them are nearly as likely.
    assert given["token_ids"][:4] == expected["token_ids"][:4]
    assert given["logprobs"][:4] == pytest.approx(expected["logprobs"][:4], abs=0.1)


def test_every_schema_has_its_artifact() -> None:
    assert {path.name for path in KEPT.glob("*.xz")} == {f"{schema}.tar.xz" for schema in SCHEMAS}


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as scratch:
        found = {str(schema): answer(unpacked(schema, Path(scratch))) for schema in SCHEMAS}
    ANSWERS.write_text(json.dumps(found, indent=2) + "\n")
