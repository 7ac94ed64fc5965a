"""Make a checkpoint from the command line: `python -m tests.checkpoints tiny OUT`, or `geometry`, or `sparse`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.checkpoints.geometry import write_geometry
from tests.checkpoints.published import PUBLISHED
from tests.checkpoints.sparse import write_sparse
from tests.checkpoints.tiny import write_tiny

_KINDS = "tiny: 2 M parameters; geometry: 6.9 GB on disk; sparse: a published size, all zeros, which takes no room"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.checkpoints", description=__doc__)
    parser.add_argument("kind", choices=("tiny", "geometry", "sparse"), help=_KINDS)
    parser.add_argument("folder", type=Path, help="where to write it; must be empty or not exist")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    parser.add_argument("--model", choices=PUBLISHED, default="397B-A17B", help="the size of a sparse one")
    options = parser.parse_args(arguments)
    if options.folder.exists() and (not options.folder.is_dir() or any(options.folder.iterdir())):
        parser.error(f"{options.folder} exists and is not an empty folder: name another, or remove it")
    if options.kind == "sparse":
        print(write_sparse(options.folder, options.model))
    else:
        write = write_tiny if options.kind == "tiny" else write_geometry
        print(write(options.folder, seed=options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
