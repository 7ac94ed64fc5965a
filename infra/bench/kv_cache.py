"""Caches of float32, int8 and int4 keys and values: the speed of attention, and the loss of accuracy.

    python -m infra.bench.kv_cache speed [--positions 4096 65536 262144] [--chunk 512] [--threads 2]
    python -m infra.bench.kv_cache loss CHECKPOINT [--text FILE] [--tokens 300 4000]

`speed` measures one layer's attention as it runs without native kernels (infra.bench.native_attention measures those),
with the heads of Qwen3.5-35B-A3B (16 for queries, 2 for keys, 256 wide), and the bare kernel: one token, and with
--chunk a chunk of a prompt, over a cache of so many positions. Kinds take turns. Wall time and processor time are the
least of all rounds; other work on the machine disturbs processor time less.

`loss` exports a checkpoint with float32 weights once for each kind, and compares it with the float32 cache on the same
tokens: KL divergence, and rounding and clipping of cached values. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.config import load_config
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.evaluation.verify import measure
from qwonnx.export.quantization.cache_scales import cache_scales
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.cache.host_buffers import HostBinding
from tests.export.decoder import Decoder
from tests.export.operators.attention_graph import inlined_cpu_attention
from tests.runtime.native.attention import OUTPUTS

KINDS = ("float32", "int8", "int4")
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 16, 2, 256
_DTYPES = {"float32": np.float32, "int8": np.int8, "int4": np.uint8}
_LARGEST_CODE = {"int8": 127, "int4": 7}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    speed = commands.add_parser("speed")
    speed.add_argument("--positions", type=int, nargs="+", default=[4096, 65536, 262144])
    speed.add_argument("--chunk", type=int, default=0, help="tokens of a prompt's chunk to measure as well")
    speed.add_argument("--threads", type=int, default=2)
    speed.add_argument("--rounds", type=int, default=7)
    loss = commands.add_parser("loss")
    loss.add_argument("checkpoint", type=Path)
    loss.add_argument("--text", type=Path, help="the text to read; random tokens without it")
    loss.add_argument("--tokens", type=int, nargs="+", default=[300, 4000])
    options = parser.parse_args(arguments)
    result = _speed(options) if options.command == "speed" else _loss(options)
    command = " ".join(["python -m infra.bench.kv_cache", *(sys.argv[1:] if arguments is None else arguments)])
    print(json.dumps({"benchmark": "kv_cache", "command": command, **result}))


class _Attention:
    """One layer's attention over a full cache, bound in place. `bare` is the kernel without its special cases."""

    def __init__(self, kind: str, positions: int, num_tokens: int, threads: int, *, bare: bool) -> None:
        model = inlined_cpu_attention(kind, num_heads=NUM_HEADS, num_kv_heads=NUM_KV_HEADS, head_dim=HEAD_DIM)
        if bare:
            _take_plain_branch(model)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # else it counts as processor time
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(0)
        width = HEAD_DIM // 2 if kind == "int4" else HEAD_DIM
        buffers = [np.empty((1, NUM_KV_HEADS, positions, width), _DTYPES[kind]) for _ in range(2)]
        for buffer in buffers:  # one draw for all positions: time does not depend on values
            codes = rng.integers(0, 256, width, np.uint8)
            buffer[:] = rng.standard_normal(width) if kind == "float32" else codes.view(buffer.dtype)
        self._arrays = {
            "query": rng.standard_normal((1, num_tokens, NUM_HEADS * HEAD_DIM), np.float32),
            "key": rng.standard_normal((1, num_tokens, NUM_KV_HEADS * HEAD_DIM), np.float32),
            "value": rng.standard_normal((1, num_tokens, NUM_KV_HEADS * HEAD_DIM), np.float32),
            "gate": rng.standard_normal((1, num_tokens, NUM_HEADS * HEAD_DIM), np.float32),
            "past_key": buffers[0],
            "past_value": buffers[1],
            "past_lengths": np.array([positions - num_tokens]),
            "key_scale": np.full((1, NUM_KV_HEADS, 1, HEAD_DIM), 0.05, np.float32),
            "value_scale": np.full((1, NUM_KV_HEADS, 1, HEAD_DIM), 0.05, np.float32),
            "input_ids": np.zeros((1, num_tokens), np.int64),
        }
        self._binding = self._session.io_binding()
        for value in self._session.get_inputs():
            array = self._arrays[value.name]
            HostBinding(self._binding).bind_input(value.name, array)
        self._attended = np.empty_like(self._arrays["query"])
        for name, array in zip(OUTPUTS, (self._attended, *buffers), strict=True):
            HostBinding(self._binding).bind_output(name, array)
        self.run()

    def run(self) -> dict[str, float]:
        wall, processor = time.perf_counter(), time.process_time()
        self._session.run_with_iobinding(self._binding)
        return {
            "wall_ms": 1e3 * (time.perf_counter() - wall),
            "cpu_ms": 1e3 * (time.process_time() - processor),
        }


def _take_plain_branch(model: onnx.ModelProto) -> None:
    """Replace the If by the nodes of its plain branch."""
    nodes = list(model.graph.node)
    (place,) = (index for index, node in enumerate(nodes) if node.op_type == "If")
    branch = next(attribute.g for attribute in nodes[place].attribute if attribute.name == "else_branch")
    renamed = dict(zip((value.name for value in branch.output), nodes[place].output, strict=True))
    for node in branch.node:
        node.output[:] = [renamed.get(name, name) for name in node.output]
    nodes[place : place + 1] = list(branch.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _speed(options: argparse.Namespace) -> dict[str, Any]:
    results = []
    for positions in options.positions:
        for num_tokens in (1, *([options.chunk] if options.chunk else [])):
            ways = {
                (kind, bare): _Attention(kind, positions, num_tokens, options.threads, bare=bare)
                for kind in KINDS
                for bare in (False, True)
            }
            runs: dict[tuple[str, bool], list[dict[str, float]]] = {way: [] for way in ways}
            for _ in range(options.rounds if num_tokens == 1 else max(2, options.rounds // 3)):
                for way, attention in ways.items():
                    runs[way].append(attention.run())
            for (kind, bare), measured in runs.items():
                best = {name: round(min(run[name] for run in measured), 2) for name in ("wall_ms", "cpu_ms")}
                row = {"positions": positions, "tokens": num_tokens, "kv": kind, "bare_kernel": bare, **best}
                print(json.dumps(row), flush=True)
                results.append(row)
    return {"threads": options.threads, "rounds": options.rounds, "results": results}


def _loss(options: argparse.Namespace) -> dict[str, Any]:
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        artifacts = {}
        for kind in KINDS:
            out = Path(scratch) / kind
            export_checkpoint(options.checkpoint, out, ExportOptions(weights="fp32", kv=kind))
            artifacts[kind] = open_artifact(out)
        for num_tokens in options.tokens:
            token_ids = _token_ids(artifacts["float32"], options.text, num_tokens)
            logits, expected = {}, Decoder(artifacts["float32"], max_model_len=len(token_ids))
            logits["float32"] = expected.prefill(token_ids, [256])
            for kind in KINDS[1:]:
                actual = Decoder(artifacts[kind], max_model_len=len(token_ids))
                logits[kind] = actual.prefill(token_ids, [256])
                report = measure(logits["float32"], logits[kind], token_ids)
                row = {
                    "kv": kind,
                    "tokens": len(token_ids),
                    "mean_kl": report.mean_kl,
                    "top1_agreement": report.top1_agreement,
                    "perplexity_float32": report.perplexity_checkpoint,
                    "perplexity": report.perplexity_artifact,
                    **_rounding(options.checkpoint, expected, kind),
                }
                print(json.dumps(row), flush=True)
                results.append(row)
    return {"checkpoint": options.checkpoint.name, "results": results}


def _token_ids(artifact: Artifact, text: Path | None, num_tokens: int) -> np.ndarray:
    if text is None:
        return np.random.default_rng(0).integers(0, 256, num_tokens)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(artifact.file("tokenizer.json")))
    encoded = tokenizer.encode(text.read_text(encoding="utf-8")[: 16 * num_tokens], add_special_tokens=False)
    return np.array(encoded.ids[:num_tokens])


def _rounding(checkpoint: Path, decoder: Decoder, kind: str) -> dict[str, float]:
    """Effect of the scales on the float cache: relative error (root mean square), and the share of clipped values."""
    config = load_config(checkpoint)
    scales = cache_scales(WeightSource(Checkpoint.open(checkpoint), config), config, kind)
    largest, length = _LARGEST_CODE[kind], int(decoder.lengths[0])
    figures: dict[str, float] = {}
    for name in ("key", "value"):
        errors, squares, clipped, count = 0.0, 0.0, 0, 0
        for layer, layer_scales in scales.items():
            scale = getattr(layer_scales, name).numpy()[:, None]
            codes = decoder.state(layer, name)[0, :, :length] / scale
            error = (np.clip(np.rint(codes), -largest - 1, largest) - codes) * scale
            errors += float(np.square(error, dtype=np.float64).sum())
            squares += float(np.square(codes * scale, dtype=np.float64).sum())
            clipped += int((np.abs(codes) > largest + 0.5).sum())
            count += codes.size
        figures |= {f"{name}_relative_error": (errors / squares) ** 0.5, f"{name}_clipped": clipped / count}
    return figures


if __name__ == "__main__":
    main()
