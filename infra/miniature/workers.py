"""Processes that train one model together, each on its own share of every step: one process a core.

Threads divide each product, and most products are small here: two threads take nearly as long as one, and on a busy
machine they wait for each other at each product. Processes wait once a step, for the mean of their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn


class Workers:
    """The processes, seen from one of them. A single process does not communicate."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def is_first(self) -> bool:
        """Whether this process writes and scores."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by the mean over the processes; a missing gradient counts as zero."""
        if self.count == 1:
            return
        given = list(parameters)
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in given]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.count
        for parameter, mean in zip(given, torch.split(flat, [one.numel() for one in given]), strict=True):
            parameter.grad = mean.view_as(parameter)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order."""
        gathered: list[Any] = [value] * self.count
        if self.count > 1:
            distributed.all_gather_object(gathered, value)
        return gathered

    def from_first(self, tensor: torch.Tensor) -> None:
        """Overwrite a tensor by the first process's."""
        if self.count > 1:
            distributed.broadcast(tensor, 0)


def run_workers(count: int, meeting: Path, function: Callable[..., None], *arguments: Any) -> None:
    """Call function(workers, *arguments) in `count` processes, or in this process if count is 1.

    Args:
        count: of processes.
        meeting: a file through which they find each other; it must not exist.
        function: of a module, so that a spawned process can import it.
        arguments: must be picklable.
    """
    if count == 1:
        function(Workers(), *arguments)
        return
    meeting.unlink(missing_ok=True)  # of a run that was killed
    spawn(_run, (count, str(meeting), function, arguments), nprocs=count)  # type: ignore[no-untyped-call]
    meeting.unlink(missing_ok=True)


def _run(rank: int, count: int, meeting: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    try:
        function(Workers(rank, count), *arguments)
    finally:
        distributed.destroy_process_group()
