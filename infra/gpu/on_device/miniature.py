"""The trained miniature, end to end: its logits and answers against the float16 twin's, replay against eager steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from infra.gpu.on_device.answers import Answers, answer, first_difference
from infra.gpu.on_device.finding import Bundle, Check, Finding
from infra.gpu.on_device.steps import Steps

LOGITS = "logits.npy"  # of the twin, behind the first prompts: [prompts, vocab_size]
_LEAST_EQUAL = 0.99  # of the answers
_MOST_DIVERGENCE = 1e-3


def checks(bundle: Bundle) -> Iterator[Check]:
    for folder in sorted(path for path in (bundle.folder / "miniature").iterdir() if path.is_dir()):
        model = _Miniature(bundle, folder)
        yield Check(f"miniature/{folder.name}/logits", model.logits)
        yield Check(f"miniature/{folder.name}/answers", model.answers)
        yield Check(f"miniature/{folder.name}/captured", model.captured)


class _Miniature:
    """One artifact of it, with what is expected."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self._bundle, self._artifact = bundle, folder / "artifact"
        self._expected = Answers.load(folder)
        self._logits = np.load(folder / LOGITS)

    def logits(self) -> Finding:
        """Behind a prompt that is read at once: largest and mean difference, and divergence."""
        prompts = self._expected.prompts[: len(self._logits)]
        steps = Steps(self._artifact, len(prompts), max(map(len, prompts)) + 1)
        found = np.stack([row.read_all().copy() for prompt in prompts for row in steps.read(prompt)])
        difference = np.abs(found - self._logits)
        ours, theirs = (each - np.logaddexp.reduce(each, axis=-1, keepdims=True) for each in (found, self._logits))
        divergence = float((np.exp(theirs) * (theirs - ours)).sum(axis=-1).mean())
        figures = {"largest": float(difference.max()), "mean": float(difference.mean()), "divergence": divergence}
        detail = ", ".join(f"{name} {figure:.1e}" for name, figure in figures.items())
        return self._bundle.judged(divergence <= _MOST_DIVERGENCE, f"differences: {detail}", figures)

    def answers(self) -> Finding:
        """Eight at a time, with replayed steps."""
        return self._compared(self._captured, self._expected.answers, _LEAST_EQUAL, "the twin's")

    def captured(self) -> Finding:
        """Replayed steps choose the tokens of eager ones, all of them."""
        eager = answer(self._artifact, self._expected.prompts, captured=False)
        return self._compared(self._captured, eager, 1.0, "those of eager steps")

    @cached_property
    def _captured(self) -> list[list[int]]:
        return answer(self._artifact, self._expected.prompts)

    def _compared(
        self, found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]], least: float, whose: str
    ) -> Finding:
        places = list(map(first_difference, found, expected))
        different = [index for index, place in enumerate(places) if place is not None]
        share = 1 - len(different) / len(places)
        detail = f"{len(places) - len(different)} of {len(places)} answers are {whose}"
        if different:
            detail += f"; answer {different[0]} differs from token {places[different[0]]} on"
        return self._bundle.judged(share >= least, detail, {"equal": share})
