"""PyTorch files of a checkpoint's tensors: `python -m tests.checkpoints.torch_files SOURCE OUT`."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

SINGLE = "pytorch_model.bin"


def write_torch(source: Path, out: Path, num_shards: int = 1) -> Path:
    """Write a folder with pytorch_model.bin, or shards and their index, and the source's text files; returns it."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json"))
    tensors = {
        name: tensor for path in sorted(source.glob("*.safetensors")) for name, tensor in load_file(path).items()
    }
    if num_shards == 1:
        torch.save(tensors, out / SINGLE)
        return out
    names = sorted(tensors)
    files = [f"pytorch_model-{number:05}-of-{num_shards:05}.bin" for number in range(1, num_shards + 1)]
    for number, file in enumerate(files):
        torch.save({name: tensors[name] for name in names[number::num_shards]}, out / file)
    index = {name: files[place % num_shards] for place, name in enumerate(names)}
    (out / f"{SINGLE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8")
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.checkpoints.torch_files", description=write_torch.__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shards", type=int, default=1)
    options = parser.parse_args(arguments)
    print(write_torch(options.source, options.out, options.shards))


if __name__ == "__main__":
    main()
