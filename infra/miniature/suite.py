"""Writes held-out examples to a file, as requests for a server: `python -m infra.miniature.suite --out FILE`.

One JSON object a line: `task`, `messages` and `tools` as in a chat completion (pictures are PNG data URLs), `thinking`,
`expected` (the right message), and `language` if the task has one. Retrieval is one task for each length of its texts.
`qwonnx eval` reads such files.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from infra.miniature.checkpoint import TRAINED
from infra.miniature.conversation import Example, Json
from infra.miniature.evaluate import TRAINED_LENGTHS, Numbers, suites
from infra.miniature.mixture import Mixture, Proportions
from infra.miniature.pictures import png


def request(example: Example, task: str | None = None) -> Json:
    """The line of an example, as an object; its task is the example's unless another name is given."""
    pictures = iter(example.pictures)

    def part(item: Json) -> Json:
        if item["type"] != "image":
            return item
        content = base64.b64encode(png(next(pictures))).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{content}"}}

    def message(given: Json) -> Json:
        content: Any = given["content"]
        return given if isinstance(content, str) else {**given, "content": [part(item) for item in content]}

    line = {
        "task": task or example.task,
        "thinking": example.thinking,
        "messages": [message(given) for given in example.messages[:-1]],
        "tools": list(example.tools),
        "expected": example.messages[-1],
    }
    return line if example.language is None else {**line, "language": example.language}


def write_suite(path: Path, examples: Iterable[Example]) -> None:
    """Write one line for each example."""
    _write(path, (request(example) for example in examples))


def write_suites(path: Path, mixture: Mixture, seed: int, numbers: Numbers) -> None:
    """Write the held-out examples of every kind, with each length of retrieval as a separate task."""
    every = suites(mixture, seed, numbers)
    _write(path, (request(one, name.removesuffix(", thinking")) for name, _, examples in every for one in examples))


def _write(path: Path, lines: Iterable[Json]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.miniature.suite", description=__doc__)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=TRAINED / "tokenizer.json",
        help="tokenizer.json with which lengths are counted; by default the miniature's",
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--number", type=int, default=256, help="questions of the glossary; others in proportion")
    parser.add_argument(
        "--lengths", type=int, nargs="*", default=TRAINED_LENGTHS, help="tokens of retrieval's texts, question included"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    mixture = Mixture(Tokenizer.from_file(str(options.tokenizer)), options.seed, Proportions())
    write_suites(options.out, mixture, options.seed, Numbers.in_proportion(options.number, options.lengths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
