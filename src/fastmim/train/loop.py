"""Training loop: steps, logging, evaluations, checkpoints, stopping, and rollback to the last good state.

The loop knows no method, target or data: a loader yields micro-batches, and a module turns each into an
object with a ``loss``. Within a step, nothing is read back from the device. All processes decide together.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmim._version import __version__
from fastmim.encoders.batch_size import explain
from fastmim.errors import RunError
from fastmim.system.hardware import peak_bytes
from fastmim.train.checkpoint import Checkpoint, Choices, OptimizerState, Progress, check_fits
from fastmim.train.checkpoint_folder import load_checkpoint, save_checkpoint
from fastmim.train.optim import guarded_step
from fastmim.train.run_files import LAST
from fastmim.train.schedules import build_schedule
from fastmim.train.seal import Damaged
from fastmim.train.session import Session
from fastmim.train.stages import Stage
from fastmim.train.task import MicroBatch, StageData

# Indices of the counters, which are on the device: sums since the last log step, then totals.
LOSS, TAKEN, NORM, SKIPPED, IN_A_ROW = range(5)


class Loop:
    """Trains ``module`` from ``progress`` to the end of ``stage``, or until a stop is requested.

    Args:
        module: as set up by Fabric.
        choices: stored in each checkpoint.
        after_step: called after each optimiser step.
    """

    def __init__(
        self,
        session: Session,
        stage: Stage,
        module: nn.Module,
        optimizer: torch.optim.AdamW,
        data: StageData,
        choices: Choices,
        progress: Progress,
        after_step: Callable[[], None],
    ) -> None:
        settings = session.settings
        self.session = session
        self.fabric = session.fabric
        self.module = module
        self.optimizer = optimizer
        self.schedule = build_schedule(settings.schedule, settings.optim.base_lr, session.plan, stage)
        self.load, self.evaluate = data.loader, data.evaluate
        self.config, self.optim = settings.loop, settings.optim
        self.stage = stage
        self.choices = choices
        self.after_step = after_step
        self.evaluate_at = session.plan.evaluation_steps(self.config.evaluations, self.config.log_every_steps)
        self.progress = progress
        self.counters = torch.tensor(progress.counters, device=self.fabric.device)
        self._saved_at = time.monotonic()
        self._saved_step: int | None = None

    def train(self) -> bool:
        """Train until the stage is complete (True) or a stop is requested (False), then save a checkpoint."""
        steps = self.load(self.progress.step)
        window, waited = time.monotonic(), 0.0
        logged_at = self.progress.step
        self.module.train()
        while self.progress.step < self.stage.last_step:
            if self._should_stop():
                self._save_unless_saved()
                return False
            asked = time.monotonic()
            micro_batches = next(steps)
            waited += time.monotonic() - asked
            lr = self.schedule.lr(self.progress.step) * self.progress.lr_scale
            self._step(micro_batches, lr)
            self.after_step()
            self.progress.step += 1
            self.session.stop.nothing_to_lose = False
            if self._is_log_step():
                if self._any(self._must_go_back()):
                    self._go_back()
                    steps = self.load(self.progress.step)
                    window, waited, logged_at = time.monotonic(), 0.0, self.progress.step
                    continue
                seconds = time.monotonic() - window
                self.progress.seconds += seconds
                self._log(lr, (self.progress.step - logged_at) / seconds, waited / seconds)
                window, waited, logged_at = time.monotonic(), 0.0, self.progress.step
            if self._is_checkpoint_due():
                self.save()
        self._save_unless_saved()
        self._share_statistics()
        return True

    def _step(self, micro_batches: Iterable[MicroBatch], lr: float) -> None:
        loss = torch.zeros((), device=self.fabric.device)
        images = self.stage.batch_size // self.fabric.world_size  # of this process, per step
        for inputs, count, last in self._seeded(micro_batches, images):
            with self.fabric.no_backward_sync(self.module, enabled=not last):  # type: ignore[arg-type]
                share_of_loss = self._loss(inputs) * (count / images)
                self.fabric.backward(share_of_loss)
            loss += share_of_loss.detach()
        norm, taken = guarded_step(self.optimizer, lr, self.optim.clip_norm)
        one = taken > 0
        self.counters[LOSS] += torch.where(one, loss, 0)
        self.counters[NORM] += torch.where(one, norm, 0)
        self.counters[TAKEN] += taken
        self.counters[SKIPPED] += 1 - taken
        self.counters[IN_A_ROW] = (self.counters[IN_A_ROW] + 1) * (1 - taken)

    def _seeded(
        self, micro_batches: Iterable[MicroBatch], images: int
    ) -> Iterator[tuple[tuple[Any, ...], int, bool]]:
        """Yield each micro-batch with torch's generators seeded by (seed, step, position).

        The seed is set before the micro-batch is built, and its position is that of its first image in the
        whole batch, over all processes. Yields inputs, number of images, and whether these complete the
        ``images`` of this process.
        """
        done, first = 0, self.fabric.global_rank * images
        iterator = iter(micro_batches)
        while True:
            seeds = np.random.SeedSequence([self.config.seed, self.progress.step, first + done])
            torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1)))
            micro_batch = next(iterator, None)
            if micro_batch is None:
                return
            inputs, count = micro_batch
            done += count
            yield inputs, count, done == images

    def _loss(self, inputs: tuple[Any, ...]) -> Tensor:
        try:
            loss: Tensor = self.module(*inputs).loss
        except ValueError as error:
            if cause := explain(error):
                raise RunError(cause) from error
            raise
        return loss

    def _is_log_step(self) -> bool:
        step = self.progress.step
        last = step == self.stage.last_step
        return last or step % self.config.log_every_steps == 0 or step in self.evaluate_at

    def _log(self, lr: float, steps_per_second: float, waiting: float) -> None:
        counters = self._of_all(self.counters).tolist()
        taken = counters[TAKEN]
        step = self.progress.step
        values: dict[str, Any] = {
            "step": step,
            "epoch": self.stage.samples_before(step) / self.session.plan.images,
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
            "seconds_left": (self.session.plan.total_steps - step) / steps_per_second,
        }
        self.counters[: NORM + 1] = 0
        if step in self.evaluate_at:
            self._share_statistics()
            values |= self.evaluate()
            self.module.train()
        if self.session.log is not None:
            self.session.log.log(step, values)

    def _share_statistics(self) -> None:
        """Give all processes the running statistics of the first one, so that all measure one model.

        `DistributedDataParallel` does the same before each step.
        """
        if self.fabric.world_size > 1:
            for buffer in self.module.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _must_go_back(self) -> bool:
        counters = self.counters.tolist()  # one read from the device
        bad_in_a_row = counters[IN_A_ROW] >= self.optim.bad_steps
        return bad_in_a_row or (counters[SKIPPED] > 0 and not self._state_is_finite())

    def _state_is_finite(self) -> bool:
        """Check weights and running statistics: a batch norm's averages include the skipped step."""
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
        self.restore(load_checkpoint(self.session.run / LAST))
        self.fabric.barrier()  # until all have read the file, which is written again below
        self.progress.rollbacks = rollbacks + 1
        self.progress.lr_scale /= 2
        self.counters[IN_A_ROW] = 0
        self.session.say(
            f"not finite at step {failed_at}: back to step {self.progress.step}, "
            f"learning rate times {self.progress.lr_scale:g}"
        )
        self.save()

    def _should_stop(self) -> bool:
        return self._any_now_and_then(self.session.stop.signal is not None)

    def _of_all(self, mine: Tensor) -> Tensor:
        """Return the mean over the processes, each of which has seen its share of the batch."""
        if self.fabric.world_size == 1:
            return mine
        mean: Tensor = self.fabric.all_reduce(mine.clone(), reduce_op="mean")  # type: ignore[assignment]
        return mean

    def _any(self, mine: bool) -> bool:
        """Return whether ``mine`` is true in any process. All processes call this at the same step."""
        if self.fabric.world_size == 1:
            return mine
        return bool(
            self.fabric.all_reduce(torch.tensor(float(mine), device=self.fabric.device), reduce_op="sum")
        )

    def _any_now_and_then(self, mine: bool) -> bool:
        """Call `_any`, but with several processes only at log steps, since communication makes them wait."""
        if self.fabric.world_size > 1 and self.progress.step % self.config.log_every_steps:
            return False
        return self._any(mine)

    def _is_checkpoint_due(self) -> bool:
        if self.config.checkpoint_every_steps is not None:
            return self.progress.step % self.config.checkpoint_every_steps == 0
        elapsed = time.monotonic() - self._saved_at
        return self._any_now_and_then(elapsed >= 60 * self.config.checkpoint_every_minutes)

    def _save_unless_saved(self) -> None:
        if self._saved_step != self.progress.step:
            self.save()

    def save(self) -> None:
        """Write a checkpoint: all processes contribute their state, and the first one writes.

        A state that is not finite never replaces the last good one.
        """
        self._saved_at, self._saved_step = time.monotonic(), self.progress.step
        if self._any(self._must_go_back()):
            return
        module, optimizer = self.module.state_dict(), self.optimizer.state_dict()
        self.progress.counters = self.counters.tolist()
        if not self.fabric.is_global_zero:
            return
        session = self.session
        checkpoint = Checkpoint(
            module=module,
            optimizer=OptimizerState(**optimizer),
            progress=self.progress,
            stage=self.stage.number,
            metrics_bytes=session.log.size() if session.log is not None else 0,
            choices=self.choices,
            identity=session.identity,
            world_size=self.fabric.world_size,
            fastmim_version=__version__,
        )
        save_checkpoint(session.run, checkpoint, self.config.keep_checkpoints)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load weights, optimiser state and progress from a checkpoint. Raises RunError unless they fit."""
        try:
            check_fits(checkpoint, self.module.state_dict(), self.optimizer)
        except Damaged as error:
            raise RunError(f"the checkpoint in {self.session.run} {error}: it is not of this run") from error
        self.module.load_state_dict(checkpoint.module)
        self.optimizer.load_state_dict(vars(checkpoint.optimizer))
        self.progress = checkpoint.progress
        self._saved_step = self.progress.step
        self.counters = torch.tensor(self.progress.counters, device=self.fabric.device)
