"""The training loop: steps, logs, evaluations, checkpoints, stops and returns to the last good state.

It knows no method, no target and no data: a feed gives it micro-batches, a module turns each into an
object with a ``loss``. Within a step nothing is read back from the device.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from fastmim.encoders.batch_size import explain
from fastmim.errors import RunError
from fastmim.system.hardware import peak_bytes
from fastmim.train.checkpoint import load_checkpoint, save_checkpoint
from fastmim.train.logs import RunLog
from fastmim.train.optim import guarded_step
from fastmim.train.run_files import LAST
from fastmim.train.schedules import Schedule
from fastmim.train.seal import Damaged
from fastmim.train.settings import LoopConfig, OptimConfig
from fastmim.train.signals import StopRequest
from fastmim.train.stages import Stage, TrainingPlan
from fastmim.train.state import check_fits

# A part of a step's batch that fits on the device: what the module is called with, the part of the
# batch that it is (0..1), and whether it completes the step.
MicroBatch = tuple[tuple[Tensor, ...], float, bool]
Feed = Callable[[int], Iterator[Iterable[MicroBatch]]]  # first step -> the micro-batches of each step


@dataclass
class Progress:
    """Where a run stands; with the weights and the optimiser, all that a resumed run needs."""

    step: int = 0
    lr_scale: float = 1.0
    rollbacks: int = 0
    seconds: float = 0.0
    counters: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0, 0.0])


# Places in the counters, which live on the device: sums since the last log step, then totals.
LOSS, TAKEN, NORM, SKIPPED, IN_A_ROW = range(5)


class Loop:
    """Runs ``module`` from where ``progress`` stands to the end of ``stage``, or until asked to stop.

    Args:
        extra: goes into each checkpoint as it is (plain values).
        evaluate: called at the steps in ``evaluate_at``, its numbers join that step's log line.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: nn.Module,
        optimizer: torch.optim.AdamW,
        schedule: Schedule,
        feed: Feed,
        run: Path,
        log: RunLog | None,
        config: LoopConfig,
        optim: OptimConfig,
        plan: TrainingPlan,
        stage: Stage,
        progress: Progress,
        extra: dict[str, Any],
        evaluate: Callable[[], dict[str, float]],
        evaluate_at: frozenset[int],
        say: Callable[[str], None],
    ) -> None:
        self.fabric = fabric
        self.module = module
        self.optimizer = optimizer
        self.schedule = schedule
        self.feed = feed
        self.run = run
        self.log = log
        self.config = config
        self.optim = optim
        self.plan = plan
        self.stage = stage
        self.extra = extra
        self.evaluate = evaluate
        self.evaluate_at = evaluate_at
        self.say = say
        self.progress = progress
        self.counters = torch.tensor(progress.counters, device=fabric.device)
        self._saved_at = time.monotonic()
        self._saved_step: int | None = None

    def handed_over(self) -> Progress:
        """Where the run stands, for the loop of the next leg."""
        self.progress.counters = self.counters.tolist()
        return self.progress

    def train(self, stop: StopRequest) -> bool:
        """True when the leg is complete, False when it was asked to stop; either way it is saved."""
        steps = self.feed(self.progress.step)
        window, waited = time.monotonic(), 0.0
        logged_at = self.progress.step
        self.module.train()
        while self.progress.step < self.stage.last_step:
            if self._should_stop(stop):
                self._save_unless_saved()
                return False
            asked = time.monotonic()
            micro_batches = next(steps)
            waited += time.monotonic() - asked
            lr = self.schedule.lr(self.progress.step) * self.progress.lr_scale
            self._step(micro_batches, lr)
            self.progress.step += 1
            stop.nothing_to_lose = False
            if self._is_log_step():
                if self._any(self._must_go_back()):
                    self._go_back()
                    steps = self.feed(self.progress.step)
                    window, waited, logged_at = time.monotonic(), 0.0, self.progress.step
                    continue
                seconds = time.monotonic() - window
                self.progress.seconds += seconds
                self._log(lr, (self.progress.step - logged_at) / seconds, waited / seconds)
                window, waited, logged_at = time.monotonic(), 0.0, self.progress.step
            if self._is_checkpoint_due():
                self.save()
        self._save_unless_saved()
        return True

    def _step(self, micro_batches: Iterable[MicroBatch], lr: float) -> None:
        loss = torch.zeros((), device=self.fabric.device)
        for arguments, share, last in self._seeded(micro_batches):
            with self.fabric.no_backward_sync(self.module, enabled=not last):  # type: ignore[arg-type]
                share_of_loss = self._loss(arguments) * share
                self.fabric.backward(share_of_loss)
            loss += share_of_loss.detach()
        norm, taken = guarded_step(self.optimizer, lr, self.optim.clip_norm)
        one = taken > 0
        self.counters[LOSS] += torch.where(one, loss, 0)
        self.counters[NORM] += torch.where(one, norm, 0)
        self.counters[TAKEN] += taken
        self.counters[SKIPPED] += 1 - taken
        self.counters[IN_A_ROW] = (self.counters[IN_A_ROW] + 1) * (1 - taken)

    def _seeded(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatch]:
        """Each micro-batch, made and computed with torch's generators a function of (seed, step, place).

        Its place is that of its first image in the whole batch, over all processes.
        """
        place = self.fabric.global_rank * (self.stage.batch_size // self.fabric.world_size)
        iterator = iter(micro_batches)
        while True:
            seeds = np.random.SeedSequence([self.config.seed, self.progress.step, place])
            torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1)))
            micro_batch = next(iterator, None)
            if micro_batch is None:
                return
            yield micro_batch
            place += len(micro_batch[0][0])

    def _loss(self, arguments: tuple[Tensor, ...]) -> Tensor:
        try:
            loss: Tensor = self.module(*arguments).loss
        except ValueError as error:
            if cause := explain(error):
                raise RunError(cause) from error
            raise
        return loss

    def _is_log_step(self) -> bool:
        step = self.progress.step
        return (
            step % self.config.log_every_steps == 0
            or step == self.stage.last_step
            or step in self.evaluate_at
        )

    def _log(self, lr: float, steps_per_second: float, waiting: float) -> None:
        counters = self._of_all(self.counters).tolist()
        taken = counters[TAKEN]
        step = self.progress.step
        values: dict[str, Any] = {
            "step": step,
            "epoch": self.stage.samples_before(step) / self.plan.images,
            "stage": self.stage.number + 1,
            "image_size": list(self.stage.image_size),
            "loss": counters[LOSS] / taken if taken else float("nan"),
            "lr": lr,
            "images_per_second": steps_per_second * self.stage.batch_size,
            "data_wait": waiting,
            "peak_memory_mb": peak_bytes(self.fabric.device) / 2**20,
            "gradient_norm": counters[NORM] / taken if taken else float("nan"),
            "skipped_steps": int(counters[SKIPPED]),
            "rollbacks": self.progress.rollbacks,
            "seconds": self.progress.seconds,
            "seconds_left": (self.plan.total_steps - step) / steps_per_second,
        }
        self.counters[: NORM + 1] = 0
        if step in self.evaluate_at:
            values |= self.evaluate()
            self.module.train()
        if self.log is not None:
            self.log.log(step, values)

    def _must_go_back(self) -> bool:
        in_a_row, skipped = self.counters[IN_A_ROW].item(), self.counters[SKIPPED].item()
        return in_a_row >= self.optim.bad_steps or (skipped > 0 and not self._state_is_finite())

    def _state_is_finite(self) -> bool:
        """Weights and running statistics: a batch norm's averages take in what the skipped step saw."""
        tensors = [t for t in self.module.state_dict().values() if t.is_floating_point()]
        return bool(torch.isfinite(nn.utils.get_total_norm(tensors)))

    def _go_back(self) -> None:
        if self.progress.rollbacks >= self.optim.rollbacks:
            raise RunError(
                f"at step {self.progress.step} the loss or its gradient is still not finite after "
                f"{self.progress.rollbacks} returns to an earlier state at a lower learning rate; "
                "the last good state is in last.ckpt; try a lower optim.base_lr or precision 32-true"
            )
        failed_at, rollbacks = self.progress.step, self.progress.rollbacks
        self.restore(load_checkpoint(self.run / LAST))
        self.fabric.barrier()  # until all have read it: it is written again below
        self.progress.rollbacks = rollbacks + 1
        self.progress.lr_scale /= 2
        self.counters[IN_A_ROW] = 0
        self.say(
            f"not finite at step {failed_at}: back to step {self.progress.step}, "
            f"learning rate times {self.progress.lr_scale:g}"
        )
        self.save()

    def _should_stop(self, stop: StopRequest) -> bool:
        if self.fabric.world_size == 1:
            return stop.signal is not None
        if self.progress.step % self.config.log_every_steps:
            return False  # the ranks must agree, and asking each other costs a wait
        return self._any(stop.signal is not None)

    def _of_all(self, mine: Tensor) -> Tensor:
        """The mean over the processes: each has seen its share of the batch."""
        if self.fabric.world_size == 1:
            return mine
        mean: Tensor = self.fabric.all_reduce(mine.clone(), reduce_op="mean")  # type: ignore[assignment]
        return mean

    def _any(self, mine: bool) -> bool:
        """Whether it holds for one of the processes, which all ask at the same step."""
        if self.fabric.world_size == 1:
            return mine
        return bool(
            self.fabric.all_reduce(torch.tensor(float(mine), device=self.fabric.device), reduce_op="sum")
        )

    def _is_checkpoint_due(self) -> bool:
        if self.config.checkpoint_every_steps is not None:
            return self.progress.step % self.config.checkpoint_every_steps == 0
        return time.monotonic() - self._saved_at >= 60 * self.config.checkpoint_every_minutes

    def _save_unless_saved(self) -> None:
        if self._saved_step != self.progress.step:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of everything (on the first process)."""
        self._saved_at, self._saved_step = time.monotonic(), self.progress.step
        if not self.fabric.is_global_zero or self._must_go_back():
            return  # a bad state never takes the place of the last good one
        self.progress.counters = self.counters.tolist()
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "leg": self.stage.number,
            "metrics_bytes": self.log.size() if self.log is not None else 0,
            **self.extra,
        }
        save_checkpoint(self.run, state, self.progress.step, self.config.keep_checkpoints)

    def restore(self, state: dict[str, Any]) -> None:
        """Take over weights, optimiser and progress from a checkpoint. Raises RunError unless they fit."""
        try:
            check_fits(state, self.module.state_dict(), self.optimizer)
        except Damaged as error:
            raise RunError(f"the checkpoint in {self.run} {error}: it is not of this run") from error
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        self._saved_step = self.progress.step
        self.counters = torch.tensor(self.progress.counters, device=self.fabric.device)
