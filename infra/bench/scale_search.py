"""The gain and the time of each further trial of the scale search.

    python -m infra.bench.scale_search [--blocks 32 64 128] [--rounds 12]

Error: squared error over squared weights, on normal and Student-t (4 degrees of freedom) weights, also for a fine grid
of 100 steps. Time: processor time of one thread to convert a slice of a million BF16 values to float32 and quantise it,
the least of the rounds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch

from qwonnx.export.quantization.quantize import TRIALS, quantize_blocks
from tests.export.dequantized import dequantize_blocks

_ROWS, _COLUMNS = 512, 2048
_FINE = {4: tuple(0.75 + i / 100 for i in range(100)), 8: tuple(0.93 + i / 1000 for i in range(100))}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    drawn = {
        "normal": torch.randn(_ROWS, _COLUMNS),
        "student t, 4": torch.distributions.StudentT(4.0).sample((_ROWS, _COLUMNS)),
    }
    rows = []
    for bits in (4, 8):
        for block_size in options.blocks:
            for trials in (*(TRIALS[bits][:count] for count in range(1, len(TRIALS[bits]) + 1)), _FINE[bits]):
                with patch.dict(TRIALS, {bits: trials}):
                    row: dict[str, Any] = {"bits": bits, "block_size": block_size, "trials": len(trials)}
                    row |= {name: float(f"{_error(values, bits, block_size):.4g}") for name, values in drawn.items()}
                    if trials is not _FINE[bits]:
                        row["ns_a_value"] = round(_seconds(drawn["normal"], bits, block_size, options.rounds) * 1e9, 2)
                rows.append(row)
                print(row, flush=True)
    print(json.dumps({"benchmark": "scale_search", "rows": rows}))


def _error(values: torch.Tensor, bits: int, block_size: int) -> float:
    codes, scales = _outputs(bits, block_size)
    quantize_blocks(values, bits, codes, scales)
    return float((dequantize_blocks(codes, scales, bits) - values).square().mean() / values.square().mean())


def _seconds(values: torch.Tensor, bits: int, block_size: int, rounds: int) -> float:
    """Seconds of one thread for one value."""
    stored, best = values.bfloat16(), float("inf")
    for _ in range(rounds):
        started = time.thread_time()
        codes, scales = _outputs(bits, block_size)
        quantize_blocks(torch.empty_like(values).copy_(stored), bits, codes, scales)
        best = min(best, time.thread_time() - started)
    return best / values.numel()


def _outputs(bits: int, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Buffers for codes and scales."""
    codes = torch.empty((_ROWS, _COLUMNS * bits // 8), dtype=torch.uint8)
    return codes, torch.empty((_ROWS, _COLUMNS // block_size))


if __name__ == "__main__":
    main()
