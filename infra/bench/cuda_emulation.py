"""What float16 changes: the emulation of a CUDA artifact beside the CPU's artifact of the same weights.

    python -m infra.bench.cuda_emulation [--checkpoint FOLDER] [--suite FILE] [--weights int4]

Both are exported here, by default from the trained miniature, in blocks of 32 without zero points. The CPU computes
in float32. The emulation is that of infra.gpu.emulation: every kernel rounds its output to float16. Both answer all
questions of a suite that have no pictures, by default the miniature's own. The divergences are of the next token's
distribution, at every position of the questions and of their expected answers. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from infra.gpu.emulation import emulate
from infra.miniature.checkpoint import TRAINED
from infra.miniature.suite import main as write_suite
from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.evaluation.artifact_subject import ArtifactSubject
from qwonnx.export.evaluation.decoder_session import DecoderSession
from qwonnx.export.evaluation.measures import kl_divergence
from qwonnx.export.evaluation.run import Outcome, evaluate
from qwonnx.export.evaluation.subject import Prompt, SkippedError
from qwonnx.export.evaluation.suite import read_suite
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.settings import RuntimeSettings

_BLOCK_SIZE = 32


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=TRAINED)
    parser.add_argument("--suite", type=Path)
    parser.add_argument("--weights", choices=("int4", "int8"), default="int4")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="qwonnx-emulation-") as name:
        folder = Path(name)
        suite = options.suite or folder / "suite.jsonl"
        if options.suite is None:
            write_suite(["--out", str(suite)])
        recipe = Recipe.preset(options.weights, _BLOCK_SIZE)
        export_checkpoint(str(options.checkpoint), folder / "cpu", ExportOptions(recipe=recipe, activations="float32"))
        export_checkpoint(str(options.checkpoint), folder / "cuda", ExportOptions(recipe=recipe, target="cuda"))
        emulate(folder / "cuda", folder / "emulation")
        print(json.dumps(measure(folder / "cpu", folder / "emulation", suite)))


def measure(artifact: Path, emulation: Path, suite: Path) -> dict[str, object]:
    """Let both answer the suite, and compare answers and distributions."""
    read = read_suite(suite)
    settings = RuntimeSettings(max_num_seqs=8, prefix_cache_bytes=0)
    answered: list[Sequence[Outcome]] = []
    subject = ArtifactSubject(artifact, settings)
    questions, prompts = [], []
    for question in read.questions:
        with suppress(SkippedError):  # with pictures
            prompts.append(subject.prompt(question, None))
            questions.append(question)
    for folder in (artifact, emulation):
        answered.append(evaluate(ArtifactSubject(folder, settings), read, questions, None).outcomes)
        print(f"{folder.name}: {sum(one.right for one in answered[-1])} of {len(questions)} right", flush=True)
    divergence, equal = _divergences(artifact, emulation, prompts)
    pairs = list(zip(*answered, strict=True))
    return {
        "questions": len(pairs),
        "right": [sum(one.right for one in outcomes) for outcomes in answered],
        "same answers": sum(one.answer == other.answer for one, other in pairs),
        "right before, wrong after": sum(one.right and not other.right for one, other in pairs),
        "positions": len(divergence),
        "mean KL": float(divergence.mean()),
        "99.9% of KL": float(np.quantile(divergence, 0.999)),
        "largest KL": float(divergence.max()),
        "same most likely token": float(equal.mean()),
    }


def _divergences(artifact: Path, emulation: Path, prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
    """KL divergence at each position of all prompts and answers, and whether the likeliest token is the same."""
    sessions = [DecoderSession(open_artifact(folder)) for folder in (artifact, emulation)]
    divergences, equal = [], []
    for prompt in prompts:
        ids = np.array(prompt.token_ids + prompt.answer_ids, np.int64)
        both = [
            np.concatenate([chunk.logits for chunk in session.read(ids, np.arange(len(ids)))]) for session in sessions
        ]
        divergences.append(kl_divergence(*both))
        equal.append(both[0].argmax(-1) == both[1].argmax(-1))
    return np.concatenate(divergences), np.concatenate(equal)


if __name__ == "__main__":
    main()
