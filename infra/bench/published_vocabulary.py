"""The trained miniature with Qwen 3.5's published vocabulary of 248,077 tokens: what a start has to load of it.

    python -m infra.bench.published_vocabulary CHECKPOINT FOLDER
    qwonnx export FOLDER ARTIFACT
    qwonnx bench cold-start ARTIFACT

A token that both vocabularies have keeps its embedding. All others get zeros: the answers are not the miniature's.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.published_tokenizer import published_tokenizer_json

_FILE = "model.safetensors"
_ROWS = 248_320  # as in the published checkpoints: a multiple of 256
_BY_TOKEN = ("embed_tokens.weight", "lm_head.weight")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    kept = with_published_vocabulary(options.checkpoint, options.folder)
    print(json.dumps({"rows": _ROWS, "kept": kept, "bytes": (options.folder / _FILE).stat().st_size}))


def with_published_vocabulary(checkpoint: Path, folder: Path) -> int:
    """Write the checkpoint to a new folder with the vocabulary.

    Args:
        checkpoint: of one file.
        folder: it must not exist.

    Returns:
        how many tokens keep their embedding.
    """
    shutil.copytree(checkpoint, folder)
    source = published_tokenizer_json()
    (folder / "tokenizer.json").write_text(source, encoding="utf-8")
    config_file = folder / "tokenizer_config.json"
    if config_file.exists():
        document = json.loads(config_file.read_text())
        document.pop("added_tokens_decoder", None)  # of the other ids
        config_file.write_text(json.dumps(document, indent=2))
    before = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json")).get_vocab()
    after = tokenizers.Tokenizer.from_str(source).get_vocab()
    both = [(number, after[token]) for token, number in before.items() if token in after]
    moved = dict(both)
    old, new = (torch.tensor(ids) for ids in zip(*both, strict=True))
    weights = {name: weight for name, weight in load_file(folder / _FILE).items() if not name.startswith("mtp.")}
    for name, weight in weights.items():
        if name.endswith(_BY_TOKEN):
            rows = torch.zeros(_ROWS, weight.shape[1], dtype=weight.dtype)
            rows[new] = weight[old]
            weights[name] = rows
    save_file(weights, folder / _FILE)
    for path in (folder / "config.json", folder / "generation_config.json"):
        path.write_text(json.dumps(_moved(json.loads(path.read_text()), moved), indent=2))
    return len(both)


def _moved(value: object, moved: dict[int, int]) -> object:
    """A document with the ids of the new vocabulary."""
    if isinstance(value, list):
        return [_moved(each, moved) for each in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, object] = {}
    for name, each in value.items():
        if name == "vocab_size":
            found[name] = _ROWS
        elif name.endswith(("token_id", "token_ids")):
            ids = each if isinstance(each, list) else [each]
            new = [moved.get(number, number) for number in ids if number is not None] or [None]
            found[name] = new if isinstance(each, list) else new[0]
        else:
            found[name] = _moved(each, moved)
    return found


if __name__ == "__main__":
    main()
