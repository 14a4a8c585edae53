"""The segmentation task, run by the engine (`train.run`)."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from fastmim.config import SegmentConfig
from fastmim.data.annotations.mask_pairs import MaskedImages
from fastmim.data.loading.mask_samples import MaskSamples, WholeMasks
from fastmim.data.loading.unreadable import SKIPPED
from fastmim.data.loading.whole_images import Geometry
from fastmim.data.sources.base import digest_of
from fastmim.downstream.backbone import PyramidBackbone
from fastmim.downstream.dense_task import DenseTask, resolve_dense
from fastmim.downstream.segmentation.evaluation import Predictor, SegmentationScores, measure_segmentation
from fastmim.downstream.segmentation.model import SegmentationModel
from fastmim.downstream.segmentation.outputs import (
    PICTURES,
    RESULTS,
    draw_worst,
    write_results,
    write_segmenter,
)
from fastmim.downstream.segmentation.uper_net import Segmenter
from fastmim.downstream.transfer_task import check_readable
from fastmim.system.size import Size
from fastmim.train.checkpoint import Choices
from fastmim.train.stages import Stage
from fastmim.train.task import Ended, StageData
from fastmim.weights.encoder_file import ORIGIN
from fastmim.weights.model_file import MODEL
from fastmim.weights.spec import WEIGHTS


class SegmentResult(NamedTuple):
    """Result of a run."""

    run: Path
    complete: bool
    steps: int
    miou: float
    """Mean IoU over the classes, per cent; NaN if the run was stopped."""
    pixel_accuracy: float
    stopped_by: int | None
    """Number of the signal that stopped the run early."""


class SegmentationTask(DenseTask):
    """Train a segmenter on images with masks.

    Args:
        config: completed from ``backbone`` and the data by `resolve`.
        backbone: newly built feature pyramid.
    """

    files: tuple[str, ...] = (WEIGHTS, ORIGIN, MODEL, RESULTS, PICTURES, SKIPPED)
    config: SegmentConfig
    trial_images = 16

    def __init__(
        self,
        fabric: Fabric,
        training: MaskedImages,
        validation: MaskedImages,
        config: SegmentConfig,
        backbone: PyramidBackbone,
    ) -> None:
        super().__init__(fabric, config, training, backbone)
        self.training = training
        self.validation = validation
        self.classes = len(training.classes)
        segmenter = Segmenter(backbone.pyramid, self.classes, config.head)
        self.prepare_dense(SegmentationModel(segmenter, config.ema, config.head.aux_weight))
        self.scores: SegmentationScores | None = None

    def data_digest(self) -> str:
        """Return a digest of the images, their masks and the classes."""
        parts = (self.training, self.validation)
        both = [(source, part.indices) for part in parts for source in (part.source, part.masks)]
        return digest_of(both, self.training.classes)

    def noise(self, count: int) -> tuple[Tensor, Tensor]:
        """Return images and class numbers for a trial step."""
        generator = torch.Generator().manual_seed(0)
        targets = torch.randint(self.classes, (count, *self.config.size), generator=generator)
        return self.noise_images(count).to(self.fabric.device), targets.to(self.fabric.device)

    def trial_key(self) -> dict[str, Any]:
        """Return the width of the head."""
        return {"head": f"UperNet {self.config.head.channels}"}

    def load(self, stage: Stage, choices: Choices) -> StageData:
        """Build the loader of jittered crops, and the evaluation on the whole validation images."""
        config, training = self.config, self.training
        samples = MaskSamples(
            training,
            config.jitter,
            Geometry(config.size, config.known_short_side),
            config.in_chans,
            config.max_class_share,
            config.max_pixels,
        )
        loader, workers = self.dense_loader(stage, choices, samples, _class_numbers)
        self.wholes = WholeMasks(
            self.validation,
            evaluation_geometry(config),
            config.in_chans,
            config.evaluation.scales,
            config.max_pixels,
        )
        self._measure = partial(
            measure_segmentation,
            samples=self.wholes,
            indices=self.validation.indices,
            classes=self.classes,
            workers=workers,
            fabric=self.fabric,
        )
        return StageData(loader, self._evaluate)

    def predictor(self) -> Predictor:
        """Return the predictor of the model as it is now."""
        config = self.config
        windows = max(1, self.choices.micro_batch)
        return Predictor(self.learner.best, config.size, config.evaluation, self.mean, self.std, windows)

    def _evaluate(self) -> dict[str, float]:
        scores = self._measure(self.predictor())
        self.say(f"mIoU {scores.miou:.2f} %, pixel accuracy {scores.pixel_accuracy:.2f} % of validation")
        return {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy}

    def summary(self, stage: Stage) -> Iterator[str]:
        """Yield lines about the segmenter and the data."""
        yield self.introduction("UperNet")
        yield from self.backbone.notes
        yield from (f"data: {note}" for note in self.training.notes)
        yield (
            f"{self.config.data}: {len(self.training)} images with masks of {self.classes} classes, "
            f"{len(self.validation)} validation images"
        )

    def finish(self, ended: Ended, say: Callable[[str], None]) -> None:
        """Evaluate the segmenter; write it, its scores and pictures. Do nothing if the run was stopped."""
        if not ended.complete:
            return
        config, training = self.config, self.training
        self.scores = scores = self._measure(self.predictor())
        check_readable(scores.unreadable, scores.example, len(self.validation), config.max_unreadable)
        if self.fabric.is_global_zero:
            write_segmenter(self.run, self.backbone, self.learner.best, training.classes, config)
            write_results(self.run, scores, training.classes, self.dense_facts(training, ended))
            draw_worst(self.run, self.predictor(), self.wholes, scores, training.classes)
        say(
            f"mIoU {scores.miou:.2f} %, pixel accuracy {scores.pixel_accuracy:.2f} %, on {scores.images} "
            f"images, after {ended.progress.seconds:.0f} s"
        )
        self.say_unreadable(scores.unreadable, say)
        say(
            f"{self.run / RESULTS}: the figures; {self.run / PICTURES}: the worst images; "
            f"{self.run / MODEL}: the model"
        )

    def result(self, ended: Ended) -> SegmentResult:
        """Return the result of the run for Python callers."""
        figures = (self.scores.miou, self.scores.pixel_accuracy) if self.scores else (float("nan"),) * 2
        return SegmentResult(self.run, ended.complete, ended.progress.step, *figures, ended.stopped_by)


def evaluation_geometry(config: SegmentConfig) -> Geometry:
    """Return the sizes of evaluated images: as in training, or fitted into a window that does not move."""
    fits = config.evaluation.mode == "whole"
    return Geometry(config.size, config.known_short_side, fits)


def _class_numbers(annotations: list[dict[str, Tensor]], _: list[Size]) -> Tensor:
    """Stack the masks of a micro-batch: (B, H, W), int64."""
    return torch.cat([arrays["mask"] for arrays in annotations]).long()


def resolve(
    config: SegmentConfig, backbone: PyramidBackbone, training: MaskedImages, say: Callable[[str], None]
) -> SegmentConfig:
    """Return ``config`` with the values that follow from the encoder and the data filled in."""
    resolved = resolve_dense(config, backbone, training, say)
    return replace(resolved, short_side=config.known_short_side)
