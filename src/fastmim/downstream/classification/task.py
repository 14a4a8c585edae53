"""The fine-tuning task, run by the engine (`train.run`)."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from fastmim.config import FinetuneConfig
from fastmim.data.labelled import Labelled, imbalance
from fastmim.data.loading.channel_stats import channel_statistics
from fastmim.data.loading.dataset import CropDataset, identity
from fastmim.data.loading.eval_loader import EvalLoader
from fastmim.data.loading.train_loader import TrainLoader
from fastmim.data.loading.unreadable import SKIPPED
from fastmim.data.sources.base import fingerprint
from fastmim.data.transforms.augment import Mixing, RandAugment
from fastmim.downstream.accuracy import Accuracy, measure_accuracy
from fastmim.downstream.classification.model import ClassificationModel
from fastmim.downstream.classification.outputs import RESULTS, write_classifier, write_results
from fastmim.downstream.classification.start import InitialModel
from fastmim.downstream.transfer_task import TransferTask, check_readable
from fastmim.encoders.batch_size import has_batch_norm
from fastmim.errors import UsageError
from fastmim.train.checkpoint import Choices
from fastmim.train.stages import Stage, build_plan
from fastmim.train.task import Ended, StageData
from fastmim.weights.encoder_file import ORIGIN
from fastmim.weights.spec import WEIGHTS

WARMUP_EPOCHS = 5.0  # as in the paper, but at most a tenth of the run
EVALUATION_BATCH = 256
TRIAL_IMAGES = 64  # at most
FEW_STEPS = 200  # below this, the user is warned


class FinetuneResult(NamedTuple):
    """Result of a run."""

    run: Path
    complete: bool
    steps: int
    top1: float
    """Per cent of the validation images; NaN if the run was stopped."""
    top5: float
    stopped_by: int | None
    """Number of the signal that stopped the run early."""


class ClassificationTask(TransferTask):
    """Train a classifier on labelled images.

    Args:
        config: completed from ``start`` and the data by `resolve`.
        start: newly built classifier.
    """

    files: tuple[str, ...] = (WEIGHTS, ORIGIN, RESULTS, SKIPPED)
    config: FinetuneConfig

    def __init__(
        self,
        fabric: Fabric,
        training: Labelled,
        validation: Labelled,
        config: FinetuneConfig,
        start: InitialModel,
    ) -> None:
        super().__init__(fabric, config, len(training))
        self.training = training
        self.validation = validation
        self.start = start
        self.classes = len(training.classes)
        self.mean, self.std = (torch.tensor(v, device=fabric.device) for v in config.crop.statistics)
        self.prepare(ClassificationModel(start.model, config.ema), start.model, start.name, start.kwargs)
        self.accuracy: Accuracy | None = None

    def data_digest(self) -> str:
        """Return a digest of the labelled images."""
        return _digest(self.training, self.validation)

    def noise(self, count: int) -> tuple[Tensor, Tensor]:
        """Return images and soft targets for a trial step."""
        device = self.fabric.device
        targets = torch.full((count, self.classes), 1 / self.classes, device=device)
        return self.noise_images(count).to(device), targets

    def load(self, stage: Stage, choices: Choices) -> StageData:
        """Build the loader of augmented and mixed images, and the evaluation on the validation images."""
        config, training, rank = self.config, self.training, self.fabric.global_rank
        size, chans = stage.image_size, config.in_chans
        world = self.fabric.world_size
        workers, stream, share = self.start_loading(stage, choices, training.source, training.indices)
        labels = torch.from_numpy(training.by_index())
        varies = config.augment.rand_magnitude > 0
        loader = TrainLoader(
            CropDataset(
                training.source,
                training.indices,
                config.crop,
                size,
                chans,
                RandAugment(config.augment, size, config.crop.statistics[0]) if varies else identity,
                config.max_pixels,
            ),
            batches=lambda step: stream.batches(stage, step, share.part),
            extra_inputs=lambda batch, _: labels[batch.indices],
            unreadable_log=self.unreadable_log,
            micro_batch=choices.micro_batch,
            workers=workers,
            seed=config.seed,
            share=share,
            mean=self.mean,
            std=self.std,
            mix=Mixing(config.augment, self.classes),
            avoid_single=has_batch_norm(self.start.model),
        )
        views = EvalLoader(
            self.validation.source,
            self.validation.indices[rank::world],
            size,
            chans,
            min(EVALUATION_BATCH, 4 * choices.micro_batch),
            workers,
            self.mean,
            self.std,
            config.max_pixels,
        )
        truth = self.validation.by_index()
        self._measure = partial(measure_accuracy, self.learner.best, views, truth, self.classes, self.fabric)
        return StageData(loader, self._evaluate)

    def _evaluate(self) -> dict[str, float]:
        accuracy = self._measure()
        self.say(f"top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} % of validation")
        return {"top1": accuracy.top1, "top5": accuracy.top5}

    def summary(self, stage: Stage) -> Iterator[str]:
        """Yield lines about the classifier and the data."""
        start, training = self.start, self.training
        millions = sum(p.numel() for p in start.model.parameters()) / 1e6
        yield f"{start.name} from {start.metadata['from']}: {millions:.1f} M parameters"
        yield from start.notes
        yield from (f"data: {note}" for note in training.notes)
        if uneven := imbalance(training):
            yield uneven
        yield (
            f"{self.config.data}: {len(training)} labelled images of {self.classes} classes, "
            f"{len(self.validation)} validation images"
        )

    def finish(self, ended: Ended, say: Callable[[str], None]) -> None:
        """Evaluate the classifier; write it and results.json. Do nothing if the run was stopped."""
        if not ended.complete:
            return
        config, training = self.config, self.training
        self.accuracy = accuracy = self._measure()
        check_readable(accuracy.unreadable, accuracy.example, len(self.validation), config.max_unreadable)
        if self.fabric.is_global_zero:
            write_classifier(self.run, self.start, self.learner, training.classes, config.size, config.crop)
            per_class = training.per_class.tolist()
            facts = {
                "training_images": len(training),
                "data_notes": training.notes,
                "training_images_per_class": dict(zip(training.classes, per_class, strict=True)),
                **self.facts(ended),
                "labels": config.labels,
            }
            write_results(self.run, self.start, accuracy, training.classes, facts)
        say(
            f"top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} %, mean over classes "
            f"{accuracy.mean_class_top1:.2f} %, on {int(accuracy.images.sum())} images, after "
            f"{ended.progress.seconds:.0f} s"
        )
        self.say_unreadable(accuracy.unreadable, say)
        say(f"{self.run / RESULTS}: the figures; {self.run / WEIGHTS}: the classifier")

    def result(self, ended: Ended) -> FinetuneResult:
        """Return the result of the run for Python callers."""
        top1, top5 = (self.accuracy.top1, self.accuracy.top5) if self.accuracy else (float("nan"),) * 2
        return FinetuneResult(self.run, ended.complete, ended.progress.step, top1, top5, ended.stopped_by)


def resolve(
    config: FinetuneConfig, start: InitialModel, training: Labelled, say: Callable[[str], None]
) -> FinetuneConfig:
    """Return ``config`` with the values that follow from the encoder and the data filled in."""
    crop, schedule, chans = config.crop, config.schedule, start.in_chans
    if config.kernels.compile == "target":
        raise UsageError("kernels.compile = target: fine-tuning has no target; give model or none")
    if crop.mean is None:
        mean, std = start.mean, start.std
        if mean is None:
            source, seed = training.source, config.split_seed
            mean, std = channel_statistics(crop, source, chans, config.size, seed, config.max_pixels, say)
        crop = replace(crop, mean=mean, std=std)
    if schedule.warmup_epochs is None:
        plan = build_plan(config.planned_stages, len(training), config.batch_size, config.micro_batch)
        warmup = min(WARMUP_EPOCHS, 0.1 * plan.total_epochs)
        schedule = replace(schedule, warmup_epochs=round(warmup, 6))
    if len(crop.statistics[0]) != chans:
        raise UsageError(f"crop.mean has {len(crop.statistics[0])} numbers, but the images {chans} channels")
    return replace(
        config,
        in_chans=chans,
        crop=crop,
        schedule=schedule,
        layer_decay=config.known_layer_decay,
        head_std=config.known_head_std,
    )


def _digest(*data: Labelled) -> str:
    """Hash the images and their classes, to check that a resumed run has the same ones."""
    digest = hashlib.sha256()
    for part in data:
        digest.update(fingerprint(part.source).encode())
        digest.update(np.ascontiguousarray(part.indices).tobytes())
        digest.update(np.ascontiguousarray(part.labels).tobytes())
    return digest.hexdigest()[:16]
