"""The engine: one order of events for every kind of training. Read `train` from top to bottom."""

import torch
from lightning_fabric import Fabric

from fastmim.train.autotune import autotune
from fastmim.train.checkpoint import Choices, Progress
from fastmim.train.device import fit_micro_batch
from fastmim.train.distributed import precision_of, quiet_warnings
from fastmim.train.kernels import COMPILES, check_kernels, own_threads
from fastmim.train.loop import Loop
from fastmim.train.run_files import CONFIG, LAST, METRICS
from fastmim.train.session import Session, open_run_dir, open_session
from fastmim.train.settings import RunSettings
from fastmim.train.stages import Stage
from fastmim.train.task import Ended, StageSetup, Task

FILES = (CONFIG, METRICS, LAST)
"""Files that the engine writes to a run's folder, besides older checkpoints and TensorBoard events."""
FITTED_BY = 2  # images of the forward pass that measures memory per image


def train(task: Task, fabric: Fabric, settings: RunSettings) -> Ended:
    """Run a task's stages in its folder, from the beginning or from its newest checkpoint.

    Every process of a run calls this.

    Raises:
        UsageError: the folder or the settings do not allow the run; nothing was written.
        RunError: the run failed; its last checkpoint is intact.
    """
    check_kernels(settings.kernels, fabric.device)
    plan, identity = task.plan, task.identity()
    files = (*FILES, *task.files)
    with own_threads() as threads, open_run_dir(fabric, settings.out, files, settings.start) as point:
        # Find the stage and the checkpoint to start from.
        first, checkpoint = plan.stages[0], None
        if point is not None:
            first, checkpoint = point.stage_of(plan), point.checkpoint
            task.check_resumable(checkpoint)

        with open_session(fabric, settings, plan, identity, point) as session:
            progress, complete = Progress(), False
            for stage in plan.stages[first.number :]:
                # Build or resize the model.
                torch.set_num_threads(threads)  # an earlier stage may have chosen fewer
                setup = task.enter(stage, session.say)
                for line in task.summary(stage):
                    session.say(line)

                # Choose kernels and micro-batch size: those of the checkpoint, or the fastest here.
                choices = _choose(session, setup, stage, checkpoint.choices if checkpoint else None)

                # Build the loader and the loop.
                data = task.load(stage, choices)
                with quiet_warnings():
                    module = fabric.setup_module(setup.module)
                loop = Loop(session, stage, module, setup.optimizer, data, choices, progress, task.after_step)
                for line in task.progress_line(stage, choices):
                    session.say(line)
                if choices.kernels is not None and choices.kernels.compile != "none":
                    session.say(COMPILES)

                # Restore the checkpoint, or write the first one; then train.
                if checkpoint is not None:
                    loop.restore(checkpoint)
                    session.say(f"resumed at step {loop.progress.step} of {plan.total_steps}")
                    checkpoint = None
                else:
                    loop.save()  # detects a full disk now; a rollback always finds a checkpoint
                complete, progress = loop.train(), loop.progress
                if not complete:
                    break

            # Evaluate and write the outputs.
            ended = Ended(complete, progress, session.stop.signal)
            task.finish(ended, session.say)
            if not complete:
                session.say(
                    f"stopped at step {progress.step} of {plan.total_steps}; "
                    f"a checkpoint is written: resume with {settings.resume_flags}"
                )
            return ended


def _choose(session: Session, setup: StageSetup, stage: Stage, known: Choices | None) -> Choices:
    """Choose kernels and micro-batch size, and apply the kernels to module and optimiser."""
    fabric = session.fabric
    kernels = known.kernels if known is not None else None
    if kernels is None:
        kernels = autotune(fabric, session.settings.kernels, setup.step, session.say)
    setup.use(kernels)
    micro_batch = known.micro_batch if known is not None else stage.micro_batch
    if micro_batch is None:
        count = min(FITTED_BY, setup.step.most_images)
        micro_batch = fit_micro_batch(
            fabric, setup.module, lambda: setup.forward(count), count, stage.batch_size
        )
    share = stage.batch_size // fabric.world_size
    return Choices(precision_of(fabric), min(micro_batch, share), kernels)
