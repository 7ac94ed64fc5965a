"""Converts one of our checkpoints for llama.cpp: `python -m infra.bench.gguf LLAMA_CPP CHECKPOINT OUT.gguf`.

LLAMA_CPP is a folder of its sources. Its converter recognises a pre-tokenizer by a hash of the tokens of a test text,
and knows only the hashes of published vocabularies; this script gives it the name. Tensors stay BF16, and
llama-quantize makes them smaller. The head of multi-token prediction is left out.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(options.llama_cpp))
    importlib.import_module("conversion.base").TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen35"
    sys.argv[1:] = [str(options.checkpoint), "--outfile", str(options.out), "--outtype", "bf16", "--no-mtp"]
    importlib.import_module("convert_hf_to_gguf").main()


if __name__ == "__main__":
    main()
