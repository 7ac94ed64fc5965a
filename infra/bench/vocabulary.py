"""The published vocabulary, loaded by the library and mapped from vocabulary.bin: what a start costs, and tokens/s.

    python -m infra.bench.vocabulary [--tokenizer FILE] [--rounds 7]

Each start is a process; the texts are encoded in turn by the library, by native merging and by merging in Python.
Processor time, the least of the rounds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwonnx.export.checkpoint.vocabulary_writer import vocabulary_tables
from qwonnx.runtime.native.library import VARIABLE
from qwonnx.runtime.text.library_vocabulary import LibraryVocabulary
from qwonnx.runtime.text.mapped_vocabulary import MappedVocabulary
from qwonnx.runtime.text.tokenizer import Tokenizer
from qwonnx.runtime.text.tokenizer_frame import TokenizerFrame
from qwonnx.runtime.text.vocabulary_file import VocabularyFile
from tests.checkpoints.published_tokenizer import published_tokenizer_json
from tests.runtime import counting_model
from tests.runtime.text.many_texts import ROOT, names_of_locales, random_unicode
from tests.runtime.text.mapped import list_files

_TEXTS = ("README.md", "docs/performance.md", "runtime/engine/engine.py", "tests/checkpoints/corpus.txt")
_START = """
import json, sys, time
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.machine import anonymous_bytes
from qwonnx.runtime.model.files import load
from qwonnx.runtime.text.artifact_tokenizer import open_tokenizer
artifact, before, started = open_artifact(sys.argv[1]), anonymous_bytes(), time.process_time()
tokenizer = open_tokenizer(artifact)
ready, private = time.process_time() - started, anonymous_bytes() - before
tokenizer.encode("What is Germany called in Swahili?")
first = time.process_time() - started - ready
print(json.dumps({"ready_cpu_s": ready, "first_text_cpu_s": first, "private_bytes": private}))
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json; by default the published vocabulary")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    source = options.tokenizer.read_text(encoding="utf-8") if options.tokenizer else published_tokenizer_json()
    library = LibraryVocabulary(TokenizerFrame.read(source))
    content = vocabulary_tables(source.encode()).packed(library.merged)
    with tempfile.TemporaryDirectory() as name:
        folder = counting_model.make(Path(name) / "artifact").folder
        (folder / "tokenizer.json").write_text(source, encoding="utf-8")
        list_files(folder)
        starts = {"library": _start(folder, options.rounds)}
        (folder / "vocabulary.bin").write_bytes(content)
        list_files(folder)
        starts["mapped"] = _start(folder, options.rounds)
        for form, start in starts.items():
            ready, private = 1e3 * start["ready_cpu_s"], start["private_bytes"] / 1e6
            print(f"{form:8} ready in {ready:.1f} ms, {private:.1f} MB private")
        speeds = _speeds(_forms(source, library, folder / "vocabulary.bin"), options.rounds)
    result = {
        "benchmark": "vocabulary",
        "processor": platform.processor() or platform.machine(),
        "rounds": options.rounds,
        "tokenizer_bytes": len(source.encode()),
        "vocabulary_bytes": len(content),
        "starts": starts,
        "tokens_per_cpu_s": speeds,
    }
    print(json.dumps(result))


def _start(folder: Path, rounds: int) -> dict[str, float]:
    """The least of each number over some processes."""
    command = [sys.executable, "-c", _START, str(folder)]
    found = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(rounds)]
    return {name: min(each[name] for each in found) for name in found[0]}


def _forms(source: str, library: LibraryVocabulary, path: Path) -> dict[str, Tokenizer]:
    def mapped() -> Tokenizer:
        file = VocabularyFile.open(path)
        tokenizer = Tokenizer(file.frame, lambda frame: MappedVocabulary(file, frame, lambda: library))
        tokenizer.encode("a first text settles who merges")
        return tokenizer

    native, kept = mapped(), os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(path.with_name("absent"))
    in_python = mapped()
    os.environ.pop(VARIABLE)
    if kept is not None:
        os.environ[VARIABLE] = kept
    return {"library": Tokenizer(source, lambda _: library), "native": native, "python": in_python}


def _speeds(forms: Mapping[str, Tokenizer], rounds: int) -> dict[str, dict[str, Any]]:
    found = {}
    for name, text in _texts().items():
        expected = forms["library"].encode(text)
        assert all(tokenizer.encode(text) == expected for tokenizer in forms.values()), name
        times: dict[str, list[float]] = {form: [] for form in forms}
        for _ in range(rounds):
            for form, tokenizer in forms.items():
                times[form].append(_seconds(tokenizer, text))
        found[name] = {form: round(len(expected) / min(each)) for form, each in times.items()}
        print(f"{name:30} {len(expected):7,} tokens", *(f"{form} {speed:,}/s" for form, speed in found[name].items()))
    return found


def _texts() -> dict[str, str]:
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in _TEXTS}
    rng = random.Random(0)
    return {
        **texts,
        "names in all scripts": "\n".join(names_of_locales()[::12]),
        "random Unicode": "".join(random_unicode(rng, 1000) for _ in range(20)),
        "a question": "What is Germany called in Swahili?",
    }


def _seconds(tokenizer: Tokenizer, text: str) -> float:
    started = time.thread_time()
    tokenizer.encode(text)
    return time.thread_time() - started


if __name__ == "__main__":
    main()
