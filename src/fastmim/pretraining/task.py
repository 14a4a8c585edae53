"""The pre-training task, run by the engine (`train.run`)."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from fastmim.config import PretrainConfig, check_resumed
from fastmim.data.loading.dataset import CropDataset, to_images
from fastmim.data.loading.train_loader import Share, TrainLoader, held_out_crops, split_images
from fastmim.data.loading.unreadable import SKIPPED, UnreadableLog
from fastmim.data.parts import splits_note
from fastmim.data.seeds import HELD_OUT_SEED, MASK_SEED, seeded_generator
from fastmim.data.sources.base import ImageSource, fingerprint, notes_of
from fastmim.encoders.batch_size import has_batch_norm
from fastmim.methods.distillation import Distilled
from fastmim.pretraining.build import FREE_ON_RESUME, Network, kernel_facts, use_kernels
from fastmim.pretraining.evaluation import HeldOut
from fastmim.pretraining.outputs import Trained, kernels_line, summary, write_outputs
from fastmim.pretraining.report import Outcome
from fastmim.pretraining.teacher_features import build_teacher_features, measure_both, with_teacher_features
from fastmim.system.hardware import loader_workers
from fastmim.train.autotune import StepToTune
from fastmim.train.checkpoint import Checkpoint, Choices
from fastmim.train.optim import build_adamw, resample_state
from fastmim.train.run import FILES
from fastmim.train.run_files import REPORT, SAMPLES
from fastmim.train.sampler import InfiniteSampler
from fastmim.train.stages import Stage, build_plan
from fastmim.train.task import Ended, StageData, StageSetup, Task
from fastmim.weights.encoder_file import ORIGIN
from fastmim.weights.spec import WEIGHTS

OUTPUTS = (WEIGHTS, ORIGIN, REPORT, SAMPLES, SKIPPED)
RUN_FILES = (*FILES, *OUTPUTS)


class RunResult(NamedTuple):
    """Result of a run."""

    run: Path
    complete: bool
    steps: int
    held_out_loss: float
    trivial_loss: float
    skipped_images: int
    stopped_by: int | None
    """Number of the signal that stopped the run early."""


class PretrainTask(Task):
    """Train a method on unlabelled images, optionally with a teacher.

    Args:
        config: completed from ``network`` by `build.resolve`.
        network: newly built, at the first stage's image size.
    """

    files: tuple[str, ...] = OUTPUTS

    def __init__(self, fabric: Fabric, source: ImageSource, config: PretrainConfig, network: Network) -> None:
        self.fabric = fabric
        self.source = source
        self.config = config
        self.network = network
        self.run = Path(config.out)
        self.split = split_images(len(source), config.held_out, config.seed)
        self.plan = build_plan(
            config.planned_stages, len(self.split.training), config.batch_size, config.micro_batch
        )
        self.optimizer = build_adamw(network.module, config.optim)
        self.mean, self.std = (torch.tensor(v, device=fabric.device) for v in config.crop.statistics)
        self.stage_number = 0  # stage whose image size the network has
        self.outcome: Outcome | None = None

    def identity(self) -> dict[str, str]:
        """Return digests of the images and of the teacher's weights."""
        digests = {"data_digest": fingerprint(self.source)}
        if self.network.teacher_setup is not None:
            digests["teacher_digest"] = self.network.teacher_setup.teacher.digest
        return digests

    def check_resumable(self, checkpoint: Checkpoint) -> None:
        """Raise UsageError unless settings, images and teacher are those that the run started with."""
        check_resumed(self.config, FREE_ON_RESUME, checkpoint.identity, self.identity())

    def enter(self, stage: Stage, say: Callable[[str], None]) -> StageSetup:
        """Bring network and optimiser to the stage's image size, and load the held-out images."""
        config, fabric = self.config, self.fabric
        self.say = say
        if not self.stage_number:
            self.unreadable_log = UnreadableLog(self.run / SKIPPED, len(self.source), config.max_unreadable)
        for passed in self.plan.stages[self.stage_number + 1 : stage.number + 1]:
            resample = self.network.module.set_image_size(passed.image_size)
            smaller, self.optimizer = self.optimizer, build_adamw(self.network.module, config.optim)
            resample_state(smaller, self.optimizer, resample)
        if stage.number > self.stage_number:
            self.network = self.network.with_teacher_at(config, stage.image_size)
        self.stage_number = stage.number
        method, module = self.network.method, self.network.module
        module.to(fabric.device)
        if self.network.teacher_setup is not None:
            self.network.teacher_setup.teacher.to(fabric.device)

        images, mask = self._held_out_images(stage)
        self.images, self.mask = images, mask
        world = fabric.world_size
        return StageSetup(
            module,
            self.optimizer,
            StepToTune(
                method,
                lambda count: (images[:count], mask[:count]),
                min(len(images), max(1, stage.batch_size // world)),
                (stage.last_step - stage.first_step) * stage.batch_size / world,
                kernel_facts(config, method, stage.image_size),
            ),
            use=partial(use_kernels, config, method, self.optimizer),
            forward=self._forward,
        )

    def _held_out_images(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """Return normalised images (B, C, H, W) and masks (B, h, w), on the device, drawn by the seed."""
        config = self.config
        crops = held_out_crops(
            self._crops(self.split.held_out, stage), config.held_out, config.seed, self.unreadable_log
        )
        images = to_images(crops, self.mean, self.std)
        generator = seeded_generator(HELD_OUT_SEED, MASK_SEED, config.seed)
        mask = self.network.method.draw_mask(generator, len(images), stage.image_size)
        return images, mask.to(self.fabric.device)

    def _crops(self, indices: NDArray[np.int64], stage: Stage) -> CropDataset:
        config = self.config
        return CropDataset(
            self.source,
            indices,
            config.crop,
            stage.image_size,
            config.in_chans,
            max_pixels=config.max_pixels,
        )

    def _forward(self, count: int) -> object:
        teacher_setup = self.network.teacher_setup
        features = teacher_setup.teacher.blank(count) if teacher_setup is not None else []
        return self.network.module(self.images[:count], self.mask[:count], *features)

    def load(self, stage: Stage, choices: Choices) -> StageData:
        """Build the loader of crops and masks and the held-out evaluation, with teacher features if any."""
        config, method = self.config, self.network.method
        share = Share.of(stage.batch_size, self.fabric.global_rank, self.fabric.world_size)
        stream = InfiniteSampler(self.split.training, config.seed)
        self.loader = TrainLoader(
            self._crops(self.split.training, stage),
            batches=lambda step: stream.batches(stage, step, share.part),
            extra_inputs=lambda _, step: method.draw_mask(
                seeded_generator(MASK_SEED, config.seed, step), share.whole, stage.image_size
            )[share.part],
            unreadable_log=self.unreadable_log,
            micro_batch=choices.micro_batch,
            workers=loader_workers(config.workers, self.fabric.world_size // config.num_nodes),
            seed=config.seed,
            share=share,
            mean=self.mean,
            std=self.std,
            avoid_single=has_batch_norm(self.network.module),
        )
        self.held_out = HeldOut(method, self.images, self.mask, choices.micro_batch, self.fabric.autocast)
        if not isinstance(self.network.module, Distilled):
            return StageData(self.loader, partial(self.held_out.measure, self.say))
        assert self.network.teacher_setup is not None
        drawn = {
            **self.identity(),
            "world_size": self.fabric.world_size,
            "precision": choices.precision,
            "micro_batch": choices.micro_batch,
            "split": len(self.split.held_out),
            "crop": asdict(config.crop),
            "seed": config.seed,
            "in_chans": config.in_chans,
            "held_out": config.held_out,
        }
        teacher_features = build_teacher_features(
            self.fabric, config.distill.cache, self.network.teacher_setup, stage, drawn, self.say
        )
        return StageData(
            with_teacher_features(self.loader, teacher_features, share.first),
            partial(measure_both, self.held_out, self.network.module, teacher_features, self.say),
        )

    def summary(self, stage: Stage) -> Iterator[str]:
        """Yield lines about the data, the model and its teacher at the start of the run."""
        if stage.number:
            return
        for note in (*notes_of(self.source), splits_note(self.config.data, self.source)):
            if note:
                yield f"data: {note}"
        yield from summary(self.config, self.network, self.plan, len(self.split.held_out))

    def progress_line(self, stage: Stage, choices: Choices) -> Iterator[str]:
        """Yield lines about the stage's batch, precision, kernels and learning rate."""
        return kernels_line(self.fabric, self.config, self.network.method, self.plan, stage, choices)

    def finish(self, ended: Ended, say: Callable[[str], None]) -> None:
        """Evaluate once more; write the encoder, the sample sheet and the report."""
        self.outcome = Outcome(
            ended.progress.step,
            self.plan.total_steps,
            self.held_out.loss(),
            self.held_out.baseline,
            len(self.source),
            len(self.unreadable_log.skipped),
            self.split.shared,
        )
        if self.fabric.is_global_zero:
            trained = Trained(self.network, self.loader, self.plan.stages[self.stage_number], self.held_out)
            write_outputs(self.fabric, self.config, trained, self.outcome, ended.complete, say)

    def result(self, ended: Ended) -> RunResult:
        """Return the result of the run for Python callers."""
        assert self.outcome is not None
        return RunResult(
            self.run,
            ended.complete,
            self.outcome.steps,
            self.outcome.held_out_loss,
            self.outcome.trivial_loss,
            self.outcome.skipped_images,
            ended.stopped_by,
        )
