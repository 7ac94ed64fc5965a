"""Processes that share the work of a step."""

from __future__ import annotations

from pathlib import Path

import torch

from infra.miniature.workers import Workers, run_workers


def _average(workers: Workers, out: Path) -> None:
    model = torch.nn.Linear(2, 1)
    model.weight.grad = torch.tensor([[1.0, 2.0]]) * (workers.rank + 1)
    if workers.is_first:
        model.bias.grad = torch.tensor([4.0])
    workers.average_gradients(model.parameters())
    chosen = torch.full((3,), float(workers.rank))
    workers.from_first(chosen)
    assert workers.gather(workers.rank) == list(range(workers.count))
    torch.save([model.weight.grad, model.bias.grad, chosen], out / f"{workers.count}-{workers.rank}.pt")


def test_two_get_the_mean_of_their_gradients_and_what_the_first_says(tmp_path: Path) -> None:
    run_workers(2, tmp_path / "meeting", _average, tmp_path)
    for rank in range(2):
        weight, bias, chosen = torch.load(tmp_path / f"2-{rank}.pt")
        torch.testing.assert_close(weight, torch.tensor([[1.5, 3.0]]))
        torch.testing.assert_close(bias, torch.tensor([2.0]))
        assert chosen.tolist() == [0.0, 0.0, 0.0]


def test_one_works_alone(tmp_path: Path) -> None:
    run_workers(1, tmp_path / "meeting", _average, tmp_path)
    weight, bias, _ = torch.load(tmp_path / "1-0.pt")
    assert weight.tolist() == [[1.0, 2.0]]
    assert bias.tolist() == [4.0]
    assert not (tmp_path / "meeting").exists()
