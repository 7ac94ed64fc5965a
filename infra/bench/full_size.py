"""Time and memory of an export of the largest model, at its true shapes: Qwen3.5-397B-A17B, 60 layers, 512 experts.

    python -m infra.bench.full_size [--model 397B-A17B] [--weights int4] [--memory 2GB] [--threads 2] [--layers 0 3]
                                    [--fraction 1.0] [--scratch DIR]

The checkpoint is sparse: names, shapes and 94 shards as published, zeros for values, no space on the disk. Two tasks,
each in a separate process:

    graph      config, index and headers, every shape, tracing and lowering of all layers
    weights    the weight stage on only some layers (one linear, one full), written to the scratch folder and deleted;
               --fraction ends it early

Zeros are not read from the disk; the arithmetic is the same as for other values. So the printed time for all layers,
from the bytes per second of these layers, is a lower bound: the disk may be slower. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from infra.bench.measured import Run, report, run_task
from tests.checkpoints import write_sparse
from tests.checkpoints.published import PUBLISHED


class _Enough(BaseException):
    """The weight stage has done the requested fraction."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.task == "graph":
        _graph(options)
    elif options.task == "weights":
        _weights(options)
    else:
        with tempfile.TemporaryDirectory(dir=options.scratch, prefix="full-size-") as scratch:
            checkpoint = write_sparse(Path(scratch) / "checkpoint", options.model)
            asked = {name: getattr(options, name) for name in ("model", "weights", "memory", "threads", "layers")}
            print(json.dumps({"benchmark": "full_size", **asked, **measure(checkpoint, Path(scratch), options)}))


def measure(checkpoint: Path, scratch: Path, options: argparse.Namespace) -> dict[str, float]:
    """Run both tasks, print a summary, and return the numbers."""
    arguments = [*_arguments(options, scratch), "--checkpoint", str(checkpoint)]
    graph, weights = (run_task("infra.bench.full_size", [*arguments, "--task", task]) for task in ("graph", "weights"))
    rate = weights.facts["done_bytes"] / weights.stages["weights"]
    hours = graph.facts["text_bytes"] / rate / 3600
    for name, run in (("graph", graph), ("weights", weights)):
        print(f"{name:7}: {_line(run)}", flush=True)
    print(f"all layers: {graph.facts['text_bytes'] / 1e9:.0f} GB at {rate / 1e6:,.0f} MB/s take {hours:.2f} h at least")
    return {
        "open_s": round(graph.stages["open"], 2),
        "graph_s": round(graph.stages["graph"], 2),
        "graph_cpu_s": round(graph.cpu_s, 2),
        "graph_max_rss": graph.max_rss,
        "num_nodes": graph.facts["num_nodes"],
        "read_bytes": weights.facts["done_bytes"],
        "written_bytes": weights.facts["written_bytes"],
        "weights_s": round(weights.stages["weights"], 2),
        "weights_cpu_s": round(weights.cpu_s, 2),
        "weights_mb_per_s": round(rate / 1e6, 1),
        "weights_max_in_flight": weights.facts["max_in_flight"],
        "weights_max_anonymous": weights.max_anonymous,
        "weights_max_rss": weights.max_rss,
        "all_layers_h": round(hours, 3),
    }


def _line(run: Run) -> str:
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in run.stages.items())
    return (
        f"{stages}; cpu {run.cpu_s:.1f} s, resident {run.max_rss / 1e6:,.0f} MB at most,"
        f" anonymous {run.max_anonymous / 1e6:,.0f} MB"
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=PUBLISHED, default="397B-A17B")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 3])
    parser.add_argument("--fraction", type=float, default=1.0, help="of these layers' bytes")
    parser.add_argument("--scratch", type=Path, help="where to write; the system's temporary folder by default")
    parser.add_argument("--task", choices=["graph", "weights"], help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _arguments(options: argparse.Namespace, scratch: Path) -> list[str]:
    arguments = ["--model", options.model, "--weights", options.weights, "--memory", options.memory]
    arguments += ["--threads", str(options.threads), "--fraction", str(options.fraction), "--scratch", str(scratch)]
    return [*arguments, "--layers", *map(str, options.layers)]


def _graph(options: argparse.Namespace) -> None:
    """Everything up to the weight stage."""
    from qwonnx.export.checkpoint.resolved_checkpoint import resolve_checkpoint
    from qwonnx.export.checkpoint.weight_source import WeightSource
    from qwonnx.export.modeling.trace import trace_decoder
    from qwonnx.export.modeling.weight_fit import fitting_weights
    from qwonnx.export.quantization.recipe import Recipe
    from qwonnx.export.targets.lowered_graph import lower_decoder
    from qwonnx.export.targets.register import choose_target

    began = time.perf_counter()
    resolved = resolve_checkpoint(str(options.checkpoint), None)
    config = resolved.config
    fitting_weights(WeightSource(resolved.tensors, config), config)
    opened = time.perf_counter()
    recipe = Recipe.preset(options.weights)
    built = lower_decoder(trace_decoder(config), recipe, config, choose_target())
    items = built.weights.items()
    end = time.perf_counter()
    source = WeightSource(resolved.tensors, config)
    text_bytes = sum(source.part(part).num_source_bytes for item in items for part in item.weights)
    facts = {"num_nodes": len(built.model.graph), "num_weights": len(items), "text_bytes": text_bytes}
    report({"open": opened - began, "graph": end - opened}, facts)


def _weights(options: argparse.Namespace) -> None:
    """The weight stage on some layers: every weight is a separate item, as in the portable target."""
    from qwonnx.export.checkpoint.checkpoint import Checkpoint
    from qwonnx.export.checkpoint.config import load_config
    from qwonnx.export.checkpoint.weight_part import WeightPart
    from qwonnx.export.checkpoint.weight_source import WeightSource
    from qwonnx.export.modeling.trace import decoder_weights
    from qwonnx.export.quantization.recipe import Recipe
    from qwonnx.export.weight_files.external_data import ExternalDataWriter
    from qwonnx.export.weight_files.progress import ExportProgress
    from qwonnx.export.weight_files.weight_item import WeightItem
    from qwonnx.export.weight_files.weight_stage import write_weights
    from qwonnx.runtime.quantities import parse_bytes

    config, recipe = load_config(options.checkpoint), Recipe.preset(options.weights)
    prefixes = tuple(f"layers.{layer}." for layer in options.layers)
    items = [
        WeightItem(name, (WeightPart(name, shape),), recipe.storage(name, shape))
        for name, shape in decoder_weights(config).items()
        if name.startswith(prefixes)
    ]
    last = ExportProgress("weights", 0, 0)

    def note(progress: ExportProgress) -> None:
        nonlocal last
        last = progress
        if progress.done_bytes > options.fraction * progress.total_bytes:
            raise _Enough

    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        began = time.perf_counter()
        with suppress(_Enough):
            write_weights(
                WeightSource(Checkpoint.open(options.checkpoint), config),
                items,
                ExternalDataWriter(Path(scratch)),
                num_threads=options.threads,
                memory_bytes=parse_bytes(options.memory, "--memory"),
                on_progress=note,
            )
        end = time.perf_counter()
        written = sum(path.stat().st_size for path in Path(scratch).iterdir())
    facts = {"done_bytes": last.done_bytes, "written_bytes": written, "max_in_flight": last.peak_bytes}
    report({"weights": end - began}, facts)


if __name__ == "__main__":
    main()
