"""The trained miniature with larger experts: the same answers and the same routing, more bytes.

    python -m infra.bench.widened_checkpoint CHECKPOINT FOLDER [--width 4096]

The new rows of each expert's gate and up matrices and the new columns of its down matrix are zero, so its output does
not change. With 4,096 rows, an expert of the miniature takes 1.3 MB in int4; one of Qwen3.5-35B-A3B takes 1.7 MB.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_FILE = "model.safetensors"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, default=4096, help="rows of an expert's gate matrix")
    options = parser.parse_args(arguments)
    widen(options.checkpoint, options.folder, options.width)
    print(json.dumps({"width": options.width, "bytes": (options.folder / _FILE).stat().st_size}))


def widen(checkpoint: Path, folder: Path, width: int) -> Path:
    """Write the checkpoint to a new folder with experts of this width; returns the folder.

    Args:
        checkpoint: of one file, with an expert's matrices stacked.
        folder: it must not exist.
        width: at least the present one.
    """
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    more = width - text["moe_intermediate_size"]
    text["moe_intermediate_size"] = width
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    weights = {name: weight for name, weight in load_file(folder / _FILE).items() if not name.startswith("mtp.")}
    for name, weight in weights.items():
        if name.endswith("experts.down_proj"):  # [experts, hidden, width]
            weights[name] = torch.nn.functional.pad(weight, (0, more))
        elif name.endswith("experts.gate_up_proj"):  # [experts, gate rows and then up rows, hidden]
            halves = (torch.nn.functional.pad(half, (0, 0, 0, more)) for half in weight.chunk(2, dim=1))
            weights[name] = torch.cat(list(halves), dim=1)
    save_file(weights, folder / _FILE)
    return folder


if __name__ == "__main__":
    main()
