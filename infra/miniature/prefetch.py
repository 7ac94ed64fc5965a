"""Other processes make batches ahead: an accelerator learns faster than one process of Python writes examples.

A batch does not depend on the process that makes it, only on the weights of the facts. A review changes these weights;
batches with the old ones are then made again.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import numpy as np
from tokenizers import Tokenizer

from infra.miniature.mixture import Mixture, Proportions, Task

_AHEAD = 3  # steps a process

_mixture: Mixture | None = None  # of a worker process


class Prefetcher:
    """Gives the tasks of one step after the other; without workers it makes them itself, on request.

    Args:
        progress: step -> progress of the training, from 0 to 1.
    """

    def __init__(self, mixture: Mixture, workers: int, progress: Callable[[int], float]) -> None:
        self._mixture, self._progress = mixture, progress
        self._pool: ProcessPoolExecutor | None = None
        self._ahead = _AHEAD * workers
        self._pending: deque[tuple[int, Future[list[Task]]]] = deque()
        if workers:
            self._pool = ProcessPoolExecutor(
                workers,
                # A forked process may hang on a lock that a thread of torch held.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(mixture.tokenizer.to_str(), mixture.seed, mixture.proportions),
            )

    def tasks(self, step: int) -> Iterator[Task]:
        """The tasks of a step."""
        if self._pool is None:
            yield from self._mixture.tasks(step, self._progress(step))
            return
        if self._pending and self._pending[0][0] != step:
            self.forget()
        following = self._pending[-1][0] + 1 if self._pending else step
        while following <= step + self._ahead:
            future = self._pool.submit(_tasks, following, self._progress(following), self._mixture.fact_weights)
            self._pending.append((following, future))
            following += 1
        yield from self._pending.popleft()[1].result()

    def forget(self) -> None:
        """Drop the batches that were made ahead, because the facts' weights have changed."""
        for _, future in self._pending:
            future.cancel()
        self._pending.clear()

    def close(self) -> None:
        """End the processes."""
        self.forget()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _begin(tokenizer: str, seed: int, proportions: Proportions) -> None:
    global _mixture
    _mixture = Mixture(Tokenizer.from_str(tokenizer), seed, proportions)


def _tasks(step: int, progress: float, fact_weights: np.ndarray) -> list[Task]:
    assert _mixture is not None
    _mixture.fact_weights[:] = fact_weights
    return list(_mixture.tasks(step, progress))
