"""Make a checkpoint from the command line: `python -m tests.checkpoints tiny OUT`, or another kind."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.checkpoints.every_format import FORMATS, write_format
from tests.checkpoints.geometry import write_geometry
from tests.checkpoints.published import PUBLISHED
from tests.checkpoints.sparse import write_sparse
from tests.checkpoints.tiny import write_tiny

_KINDS = (
    "tiny: 2 M parameters; quantized: the same in a quantised format; geometry: 6.9 GB on disk;"
    " sparse: a published size, all zeros, which takes no room"
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.checkpoints", description=__doc__)
    parser.add_argument("kind", choices=("tiny", "quantized", "geometry", "sparse"), help=_KINDS)
    parser.add_argument("folder", type=Path, help="where to write it; must be empty or not exist")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    parser.add_argument("--model", choices=PUBLISHED, default="397B-A17B", help="the size of a sparse one")
    parser.add_argument("--format", choices=FORMATS, help="of a quantized one")
    options = parser.parse_args(arguments)
    if (options.kind == "quantized") != (options.format is not None):
        parser.error("a quantized checkpoint, and no other, has a --format")
    if options.folder.exists() and (not options.folder.is_dir() or any(options.folder.iterdir())):
        parser.error(f"{options.folder} exists and is not an empty folder: name another, or remove it")
    if options.kind == "sparse":
        print(write_sparse(options.folder, options.model))
    elif options.kind == "quantized":
        with TemporaryDirectory() as floats:
            source = write_tiny(Path(floats) / "tiny", seed=options.seed, fused_experts=False)
            print(write_format(source, options.folder, options.format))
    else:
        write = write_tiny if options.kind == "tiny" else write_geometry
        print(write(options.folder, seed=options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
