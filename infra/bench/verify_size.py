"""Memory and time of `qwonnx verify` at the true shapes of the largest model: some layers of Qwen3.5-397B-A17B.

    python -m infra.bench.verify_size [--model 397B-A17B] [--memory 6GB] [--layers linear_attention full_attention]
                                      [--scratch DIR]

The checkpoint is sparse, but for its routers and the embeddings of the text's tokens, which are random: so tokens go to
all experts. Layers are exported as int4 with the default recipe, which takes 9 GB in the scratch folder for two, and
verified in a separate process. With root's rights that process is in a control group which limits all its memory to
--memory, cached pages of files included; elsewhere `group_peak_bytes` is null. Time for all layers is that of these,
times their number; opening and the head are counted once. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infra.bench.measured import report, run_task
from infra.bench.memory_group import memory_group
from qwonnx.runtime.quantities import parse_bytes
from tests.checkpoints import write_sparse
from tests.checkpoints.published import PUBLISHED
from tests.checkpoints.safetensors_files import encode

# Ids of the tiny tokenizer's tokens that the text has lie below.
_NUM_EMBEDDED = 4096
_ONCE = ("open", "head")  # stages whose time does not grow with the number of layers


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.task:
        _verify(options)
        return
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="verify-size-") as scratch:
        checkpoint, artifact = Path(scratch) / "checkpoint", Path(scratch) / "artifact"
        write_sparse(checkpoint, options.model, options.layers)
        fill_routers(checkpoint)
        _export(checkpoint, artifact)
        task = ["--task", "verify", "--checkpoint", str(checkpoint), "--artifact", str(artifact)]
        with memory_group(parse_bytes(options.memory, "--memory")) as group:
            join = group.join if group else None
            run = run_task("infra.bench.verify_size", [*task, "--memory", options.memory], join)
            peak = group.peak_bytes() if group else None
    layers, all_layers = len(options.layers), PUBLISHED[options.model].config()["text_config"]["num_hidden_layers"]
    once = sum(seconds for stage, seconds in run.stages.items() if stage in _ONCE)
    each = (sum(run.stages.values()) - once) / layers
    print(
        json.dumps(
            {
                "benchmark": "verify_size",
                "model": options.model,
                "memory": options.memory,
                "layers": layers,
                **run.facts,
                "seconds": {stage: round(seconds, 1) for stage, seconds in run.stages.items()},
                "cpu_s": round(run.cpu_s, 1),
                "max_anonymous": run.max_anonymous,
                "max_rss": run.max_rss,
                "group_peak_bytes": peak,
                "all_layers_h": round((once + each * all_layers) / 3600, 2),
            }
        )
    )


def fill_routers(checkpoint: Path) -> None:
    """Random values for routers, and for the embeddings of the first tokens."""
    random = np.random.default_rng(0)
    for path in checkpoint.glob("*.safetensors"):
        with path.open("r+b") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            for name, entry in header.items():
                if not name.endswith((".mlp.gate.weight", "embed_tokens.weight")) or name.startswith("mtp."):
                    continue
                rows, columns = entry["shape"]
                file.seek(8 + length + entry["data_offsets"][0])
                values = random.standard_normal((min(rows, _NUM_EMBEDDED), columns)).astype(np.float32)
                file.write(encode(values, entry["dtype"]))


def _export(checkpoint: Path, artifact: Path) -> None:
    from qwonnx.export import ExportOptions, export_checkpoint

    export_checkpoint(checkpoint, artifact, ExportOptions())


def _verify(options: argparse.Namespace) -> None:
    from qwonnx.export.verification.progress import VerificationProgress
    from qwonnx.export.verification.verification import VerificationOptions, verify_artifact

    stages: dict[str, float] = {}
    at, stage = time.perf_counter(), "open"

    def note(progress: VerificationProgress) -> None:
        nonlocal at, stage
        now = time.perf_counter()
        stages[stage] = stages.get(stage, 0.0) + now - at
        at, stage = now, progress.stage

    asked = VerificationOptions(memory_bytes=parse_bytes(options.memory, "--memory"))
    found = verify_artifact(options.artifact, options.checkpoint, asked, note)
    stages[stage] = stages.get(stage, 0.0) + time.perf_counter() - at
    assert found.evidence is not None, found.decision
    print(found.decision.sentence, flush=True)
    used = found.evidence.experts_used
    report(stages, {"num_tokens": found.num_tokens, "experts_used": -1 if used is None else round(used, 3)})


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=PUBLISHED, default="397B-A17B")
    parser.add_argument("--memory", default="6GB")
    parser.add_argument("--layers", nargs="+", default=["linear_attention", "full_attention"])
    parser.add_argument("--scratch", type=Path, help="where to write; the system's temporary folder by default")
    parser.add_argument("--task", choices=["verify"], help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--artifact", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
