"""Archives in folders of one transfer's size."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from infra.gpu.transfers import Transfers

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("thoroughly", [True, False])
def test_parts_fill_each_transfer_and_together_are_the_archive(tmp_path: Path, thoroughly: bool) -> None:
    tree, bundle = tmp_path / "tree", tmp_path / "bundle"
    (tree / "a").mkdir(parents=True)
    bundle.mkdir()
    random = np.random.default_rng(0).bytes(250_000)
    (tree / "a" / "random").write_bytes(random)
    (tree / "same").write_bytes(random)
    transfers = Transfers(bundle, transfer_bytes=300_000)  # of which 100,000 are free for parts
    archives = [transfers.add(tree, thoroughly=thoroughly) for _ in range(2)]
    assert archives[0].sha256 == archives[1].sha256
    assert transfers.count == 6  # and not ten: the copy is a link
    for number in range(1, 6):
        assert sum(path.stat().st_size for path in (bundle / f"transfer-{number}").iterdir()) == 100_000
    content = b"".join((bundle / part.path).read_bytes() for part in archives[1].parts)
    with tarfile.open(fileobj=io.BytesIO(content)) as stream:
        stream.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 has none
        stream.extractall(tmp_path / "out")
    assert (tmp_path / "out" / "a" / "random").read_bytes() == (tmp_path / "out" / "same").read_bytes() == random
