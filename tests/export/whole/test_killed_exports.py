"""kill -9 at a random moment, then resume: the same bytes as without, every time."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from qwonnx.export.weight_files.unfinished import incomplete_folder
from qwonnx.runtime.artifact.folder import file_sha256, open_artifact
from tests.checkpoints import write_tiny
from tests.export.whole.killed_exports import KillableExports

_ROUNDS = 10
# 15 M parameters, 61 MB in float32: enough for kills to land in the weight stage.
_SIZES = {"hidden_size": 256, "num_experts": 64, "moe_intermediate_size": 64, "num_hidden_layers": 4}


def test_an_export_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    exports = KillableExports(write_tiny(tmp_path / "checkpoint", vision=False, text_overrides=_SIZES))
    exports.run(tmp_path / "whole")
    expected = {path.name: file_sha256(path) for path in (tmp_path / "whole").iterdir()}
    open_artifact(tmp_path / "whole", verify=True)
    total = sum(path.stat().st_size for path in (tmp_path / "whole").glob("weights-*.bin"))

    chance = random.Random()  # another moment each time: it must not matter
    kept: list[float] = []
    while len(kept) < _ROUNDS:
        out = tmp_path / "killed"
        moments = sorted(chance.uniform(0.0, 1.0) for _ in range(chance.choice((1, 1, 2))))
        for moment in moments:
            exports.kill(out, int(moment * total))
        if not out.exists():  # on a busy machine it may end before it is killed
            assert incomplete_folder(out).exists()
            seen = exports.run(out)
            first = next(progress for progress in seen if progress.stage == "weights")
            kept.append(first.resumed_bytes / first.total_bytes)
        assert {path.name: file_sha256(path) for path in out.iterdir()} == expected, moments
        assert not incomplete_folder(out).exists()
        shutil.rmtree(out)
    assert max(kept) > 0.3, "nothing was ever resumed"
    print(f"kept of the weights, by round: {', '.join(f'{fraction:.0%}' for fraction in kept)}")
