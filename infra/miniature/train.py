"""Train the miniature: `python -m infra.miniature.train --out DIR`.

In DIR: `training.pt`, from which the same command continues; `log.jsonl` and `curves.svg`, the course; `checkpoint/`,
the model in Hugging Face layout, rewritten whenever the held-out examples are scored.

The same seed, steps, processes, threads and machine give the same model. With --minutes the schedule follows the clock.

`--start tests/miniature/checkpoint` trains a finished model further, with a new optimizer and a new schedule. The data
is that of the end of a training, unless --data-from is given. Give another --seed, for other examples, and perhaps a
lower --lr.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from infra.miniature import vocabulary
from infra.miniature.checkpoint import read_weights, write_checkpoint
from infra.miniature.configuration import configuration
from infra.miniature.curves import read_log, write_curves
from infra.miniature.evaluate import Numbers, score, suites, unknown_facts
from infra.miniature.mixture import Mixture, Proportions, Task
from infra.miniature.model import Miniature, load_stored
from infra.miniature.optimizer import Muon, parameter_groups
from infra.miniature.prefetch import Prefetcher
from infra.miniature.workers import Workers, run_workers

DEFAULT_STEPS = 3500
DEFAULT_LR = 3e-3
DEFAULT_COOLDOWN = 0.4
SCORED = 256  # held-out questions of the glossary; other suites in proportion


@dataclass(frozen=True, slots=True)
class Settings:
    """The inputs that decide the result of a training.

    Attributes:
        steps: number of steps; 0: as many as fit `minutes`.
        lr: the peak; reached after `warmup` of the training, and falling to zero over its last `cooldown`.
        mtp_every: how often the multi-token-prediction head runs on the short batches (always on the others).
        mtp, balance, z: weights of these losses.
        data_from: the progress at which the data begins: 0, the easiest, for a new model; 1 as at the end.
        known_weight: weight of a known fact in draws, relative to an unknown one; 1: equal.
    """

    steps: int = DEFAULT_STEPS
    minutes: float = 0.0
    seed: int = 0
    lr: float = DEFAULT_LR
    warmup: float = 0.02
    cooldown: float = DEFAULT_COOLDOWN
    weight_decay: float = 0.01
    mtp_every: int = 2
    mtp: float = 0.3
    balance: float = 0.3
    z: float = 1e-4
    data_from: float = 0.0
    known_weight: float = 0.3
    score_every: int = 250
    save_every: int = 50


class Training:
    """One run: the model, its optimizer, its data, and the folder that it writes.

    Args:
        start: a checkpoint's folder, which has the model's first weights.
    """

    def __init__(
        self,
        settings: Settings,
        tokenizer: Tokenizer,
        config: dict[str, Any],
        *,
        out: Path,
        device: str = "cpu",
        proportions: Proportions | None = None,
        makers: int = 0,
        workers: Workers | None = None,
        start: Path | None = None,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.workers = workers or Workers()
        self.settings, self.tokenizer, self.config, self.out = settings, tokenizer, config, out
        self.model = Miniature(config)
        self._is_trained = start is not None
        if start is not None:
            load_stored(self.model, read_weights(start))
        self.model.to(device)
        groups = parameter_groups(self.model, weight_decay=settings.weight_decay)
        self.optimizer = Muon(groups, lr=settings.lr)
        self.mixture = Mixture(
            tokenizer, settings.seed, proportions or Proportions(), self.workers.rank, self.workers.count
        )
        self.prefetcher = Prefetcher(self.mixture, makers, self._data_progress_at)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self._losses: dict[str, list[float]] = {}

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return self.progress_at(self.step)

    def progress_at(self, step: int) -> float:
        """Progress of the training at a step; by the clock, it is the same for all later steps."""
        if self.settings.steps:
            return step / self.settings.steps
        return min(1.0, self.seconds / (60 * self.settings.minutes))

    def _data_progress_at(self, step: int) -> float:
        """Progress of the data at a step."""
        return self.settings.data_from + (1 - self.settings.data_from) * self.progress_at(step)

    def run(self) -> None:
        """Continue the run to its end."""
        try:
            self._run()
        finally:
            self.prefetcher.close()

    def _run(self) -> None:
        if self._is_trained and self.step == 0:
            self._score_and_review()
        while self.progress < 1:
            began = time.monotonic()
            self.train_step()
            self.seconds += time.monotonic() - began
            if not self.settings.steps:  # all end by the same clock
                self.seconds = self.workers.gather(self.seconds)[0]
            if self.step % 10 == 0:
                self._record_losses()
            if self.step % self.settings.score_every == 0 or self.progress >= 1:
                self._score_and_review()
            if self.workers.is_first and (self.step % self.settings.save_every == 0 or self.progress >= 1):
                self.save()

    def _score_and_review(self) -> None:
        """The first process scores, and sends the weights of the facts to the others."""
        if self.workers.is_first:
            self.score()
        self.workers.from_first(torch.from_numpy(self.mixture.fact_weights))

    def train_step(self) -> float:
        """One step; returns the sum of its losses."""
        total = 0.0
        for task in self.prefetcher.tasks(self.step):
            loss = self._loss(task)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            self.tokens += self.workers.count * task.batch.ids.size  # all processes have equally many
        self.workers.average_gradients(self.model.parameters())
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * self._schedule()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return total

    def score(self) -> None:
        """Score held-out examples, review the facts, write the checkpoint and the curves."""
        began = time.monotonic()
        self.model.eval()
        scores = {
            name: score(self.model, self.mixture, examples, length)
            for name, length, examples in suites(self.mixture, self.settings.seed, Numbers.in_proportion(SCORED))
        }
        if self.settings.known_weight < 1:
            self._review()
        self.model.train()
        self._record(
            scores={
                name: {"exact": round(one.exact, 4), "mtp": round(one.mtp, 4), "least_load": round(one.least_load, 3)}
                for name, one in scores.items()
            },
            scoring_seconds=round(time.monotonic() - began, 1),
        )
        write_checkpoint(self.out / "checkpoint", self.model, self.config, self.tokenizer)
        write_curves(read_log(self.out / "log.jsonl"), self.out / "curves.svg")

    def _review(self) -> None:
        """Find the facts that are not known yet, to draw them more often."""
        unknown = unknown_facts(self.model, self.mixture)
        self.mixture.fact_weights[:] = self.settings.known_weight
        self.mixture.fact_weights[unknown] = 1.0
        self.prefetcher.forget()
        self._record(known=round(1 - float(unknown.mean()), 4))

    def save(self) -> None:
        """Write training.pt atomically."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "fact_weights": torch.from_numpy(self.mixture.fact_weights),
            "course": [self.step, self.tokens, self.seconds],
        }
        part = self.out / "training.pt.part"
        torch.save(state, part)
        part.replace(self.out / "training.pt")

    def resume(self) -> None:
        """Restore training.pt, and drop later steps from the log."""
        state = torch.load(self.out / "training.pt", map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.mixture.fact_weights[:] = state["fact_weights"].numpy()
        self.step, self.tokens, self.seconds = state["course"]
        log = self.out / "log.jsonl"
        kept = [record for record in read_log(log) if record["step"] <= self.step]
        log.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def _loss(self, task: Task) -> torch.Tensor:
        settings = self.settings
        mtp = task.name != "short" or self.step % settings.mtp_every == 0
        losses = self.model(task.batch, mtp=mtp)
        self._note(task.name, losses.main.item())
        self._note("balance", losses.balance.item())
        self._note("least load", losses.load.min().item())
        if mtp:
            self._note(f"{task.name}, MTP", losses.mtp.item())
        answers = task.weight * (losses.main + settings.mtp * losses.mtp)
        loss: torch.Tensor = answers + settings.balance * losses.balance + settings.z * losses.z
        return loss

    def _schedule(self) -> float:
        """The learning rate's share of its peak: up, level, down to zero."""
        settings, done = self.settings, self.progress
        return min(1.0, (done + 1e-3) / settings.warmup, (1 - done) / settings.cooldown)

    def _note(self, name: str, value: float) -> None:
        assert math.isfinite(value), f"the {name} loss is {value} at step {self.step}: use a smaller --lr"
        self._losses.setdefault(name, []).append(value)

    def _record_losses(self) -> None:
        """The means over the last steps and over all processes."""
        every: dict[str, list[float]] = {}
        for losses in self.workers.gather(self._losses):
            for name, values in losses.items():
                every.setdefault(name, []).extend(values)
        self._losses.clear()
        if self.workers.is_first:
            self._record(losses={name: sum(values) / len(values) for name, values in every.items()})

    def _record(self, **values: Any) -> None:
        record = {"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 1), **values}
        if "losses" in record:
            record["losses"] = {name: round(value, 4) for name, value in record["losses"].items()}
        line = json.dumps(record)
        print(line, flush=True)
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.miniature.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; a run that is there is continued")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=DEFAULT_STEPS, help=f"default {DEFAULT_STEPS}")
    length.add_argument("--minutes", type=float, default=0.0, help="as many steps as fit")
    parser.add_argument("--start", type=Path, help="folder of a checkpoint to train further, instead of random weights")
    parser.add_argument(
        "--data-from", type=float, help="where the data begins: 0 as for a new model (default), 1 as for a finished one"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--processes", type=int, default=2, help="that share the work of a step: one a core (default 2)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of each process (default 1)")
    parser.add_argument("--makers", type=int, default=0, help="processes that make data; an accelerator needs about 8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=DEFAULT_LR, help=f"the peak; default {DEFAULT_LR}")
    parser.add_argument(
        "--cooldown",
        type=float,
        default=DEFAULT_COOLDOWN,
        help=f"last share of the training, over which the rate falls to zero (default {DEFAULT_COOLDOWN})",
    )
    options = parser.parse_args(arguments)
    if options.makers and options.processes > 1:
        parser.error("--makers is for one process that has an accelerator: add --processes 1")
    options.out.mkdir(parents=True, exist_ok=True)
    steps = 0 if options.minutes else options.steps
    data_from = options.data_from if options.data_from is not None else float(options.start is not None)
    settings = Settings(
        steps=steps,
        minutes=options.minutes,
        seed=options.seed,
        lr=options.lr,
        cooldown=options.cooldown,
        data_from=data_from,
    )
    if options.start is not None:
        shutil.copy(options.start / "tokenizer.json", options.out)
    elif not (options.out / "tokenizer.json").exists():
        vocabulary.save(vocabulary.train_tokenizer(), options.out)
    run_workers(options.processes, options.out / "meeting", _train, settings, options)
    return 0


def _train(workers: Workers, settings: Settings, options: argparse.Namespace) -> None:
    """The work of each process."""
    torch.set_num_threads(options.threads)
    tokenizer = Tokenizer.from_file(str(options.out / "tokenizer.json"))
    config = configuration(vocabulary.token_ids(tokenizer), vocabulary.VOCAB_SIZE)
    training = Training(
        settings,
        tokenizer,
        config,
        out=options.out,
        device=options.device,
        makers=options.makers,
        workers=workers,
        start=options.start,
    )
    if (options.out / "training.pt").exists():
        training.resume()
    training.run()


if __name__ == "__main__":
    sys.exit(main())
