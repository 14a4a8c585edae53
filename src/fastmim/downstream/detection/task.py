"""The detection task, run by the engine (`train.run`)."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from fastmim.config import DetectConfig
from fastmim.data.annotations.instances import InstanceImages
from fastmim.data.loading.instance_samples import InstanceSamples
from fastmim.data.loading.unreadable import SKIPPED
from fastmim.data.loading.whole_images import Geometry, WholeImages
from fastmim.data.sources.base import digest_of
from fastmim.downstream.backbone import PyramidBackbone
from fastmim.downstream.dense_task import DenseTask, resolve_dense
from fastmim.downstream.detection.evaluation import measure_detection
from fastmim.downstream.detection.model import DetectionModel, Objects, unpacked
from fastmim.downstream.detection.outputs import (
    CURVE,
    DETECTIONS,
    PICTURES,
    RESULTS,
    draw_curve,
    draw_worst,
    write_detector,
    write_results,
)
from fastmim.downstream.detection.prediction import DetectionPredictor
from fastmim.downstream.detection.rcnn import Detector
from fastmim.downstream.detection.scores import DetectionScores
from fastmim.downstream.transfer_task import check_readable
from fastmim.errors import UsageError
from fastmim.system.size import Size
from fastmim.train.checkpoint import Choices
from fastmim.train.stages import Stage
from fastmim.train.task import Ended, StageData
from fastmim.weights.encoder_file import ORIGIN
from fastmim.weights.model_file import MODEL
from fastmim.weights.spec import WEIGHTS

TRIAL_OBJECTS = 8  # in each image of a trial step


class DetectResult(NamedTuple):
    """Result of a run."""

    run: Path
    complete: bool
    steps: int
    box_ap: float
    """AP of boxes, per cent; NaN if the run was stopped."""
    mask_ap: float
    """AP of masks, per cent; NaN without masks."""
    stopped_by: int | None
    """Number of the signal that stopped the run early."""


class DetectionTask(DenseTask):
    """Train a detector on images with boxes and, for Mask R-CNN, masks.

    Args:
        config: completed from ``backbone`` and the data by `resolve`.
        backbone: newly built feature pyramid.
    """

    files: tuple[str, ...] = (WEIGHTS, ORIGIN, MODEL, RESULTS, DETECTIONS, PICTURES, CURVE, SKIPPED)
    config: DetectConfig
    trial_images = 4

    def __init__(
        self,
        fabric: Fabric,
        training: InstanceImages,
        validation: InstanceImages,
        config: DetectConfig,
        backbone: PyramidBackbone,
    ) -> None:
        super().__init__(fabric, config, training, backbone)
        self.training = training
        self.validation = validation
        self.masks = config.head.masks == "yes"
        self.classes = len(training.classes)
        detector = Detector(backbone.pyramid, self.classes, config.head, self.masks)
        self.prepare_dense(DetectionModel(detector, config.ema))
        self.scores: DetectionScores | None = None

    def data_digest(self) -> str:
        """Return a digest of the images, their objects and the classes."""
        parts = (self.training, self.validation)
        objects = (
            part.objects[index].boxes.tobytes().hex() + part.objects[index].labels.tobytes().hex()
            for part in parts
            for index in part.indices
        )
        return digest_of([(part.source, part.indices) for part in parts], (*self.training.classes, *objects))

    def noise(self, count: int) -> tuple[Tensor, Objects]:
        """Return images and objects for a trial step."""
        device, (height, width) = self.fabric.device, self.config.size
        generator = torch.Generator().manual_seed(0)
        targets = []
        for _ in range(count):
            corners = torch.rand(TRIAL_OBJECTS, 2, 2, generator=generator) * torch.tensor([width, height])
            boxes = torch.cat([corners.amin(1), corners.amax(1) + 1], dim=1)
            target = {
                "boxes": boxes.to(device),
                "labels": torch.randint(1, self.classes + 1, (TRIAL_OBJECTS,), generator=generator).to(
                    device
                ),
            }
            if self.masks:
                target["masks"] = torch.ones(TRIAL_OBJECTS, height, width, dtype=torch.uint8, device=device)
            targets.append(target)
        return self.noise_images(count).to(device), Objects([(height, width)] * count, targets)

    def trial_key(self) -> dict[str, Any]:
        """Return the form of the heads."""
        head = self.config.head
        return {"head": f"R-CNN {head.channels} {head.hidden} {head.regions} {head.upgraded} {self.masks}"}

    def load(self, stage: Stage, choices: Choices) -> StageData:
        """Build the loader of jittered crops, and the evaluation on the whole validation images."""
        config, training = self.config, self.training
        geometry = Geometry(config.size, min(config.size), fits=True)
        samples = InstanceSamples(
            training, config.jitter, geometry, config.in_chans, self.masks, config.paste, config.max_pixels
        )
        collate = partial(objects_of, size=config.size)
        loader, workers = self.dense_loader(stage, choices, samples, collate)
        self.wholes = WholeImages(
            self.validation.source, geometry.scale, config.in_chans, max_pixels=config.max_pixels
        )
        self._measure = partial(
            measure_detection,
            samples=self.wholes,
            data=self.validation,
            batch=choices.micro_batch,
            workers=workers,
            fabric=self.fabric,
        )
        return StageData(loader, self._evaluate)

    def predictor(self) -> DetectionPredictor:
        """Return the predictor of the model as it is now."""
        return DetectionPredictor(self.learner.best, self.config.size, self.mean, self.std)

    def _evaluate(self) -> dict[str, float]:
        scores = self._measure(self.predictor())
        self.say(f"{in_words(scores)} of validation")
        masks = (
            {} if scores.mask is None else {"mask_ap": scores.mask["AP"], "mask_ap50": scores.mask["AP50"]}
        )
        return {"box_ap": scores.box["AP"], "box_ap50": scores.box["AP50"], **masks}

    def summary(self, stage: Stage) -> Iterator[str]:
        """Yield lines about the detector and the data."""
        yield self.introduction("Mask R-CNN" if self.masks else "Faster R-CNN")
        if not self.training.has_masks:
            yield "the data has boxes only, so masks are not trained"
        yield from self.backbone.notes
        yield from (f"data: {note}" for note in self.training.notes)
        yield (
            f"{self.config.data}: {len(self.training)} images with {self.training.object_count:,} objects of "
            f"{self.classes} classes, {len(self.validation)} validation images"
        )

    def finish(self, ended: Ended, say: Callable[[str], None]) -> None:
        """Evaluate the detector; write it, its scores and pictures. Do nothing if the run was stopped."""
        if not ended.complete:
            return
        config, training = self.config, self.training
        self.scores = scores = self._measure(self.predictor())
        check_readable(scores.unreadable, scores.example, len(self.validation), config.max_unreadable)
        if self.fabric.is_global_zero:
            write_detector(self.run, self.backbone, self.learner.best, training.classes, config, self.masks)
            facts = {"training_objects": training.object_count, **self.dense_facts(training, ended)}
            write_results(self.run, scores, facts)
            draw_curve(self.run, scores)
            draw_worst(self.run, self.predictor(), self.wholes, self.validation, scores)
        say(f"{in_words(scores)}, on {scores.images} images, after {ended.progress.seconds:.0f} s")
        self.say_unreadable(scores.unreadable, say)
        say(
            f"{self.run / RESULTS}: the figures; {self.run / PICTURES}: the worst images; "
            f"{self.run / MODEL}: the model"
        )

    def result(self, ended: Ended) -> DetectResult:
        """Return the result of the run for Python callers."""
        box = self.scores.box["AP"] if self.scores else float("nan")
        mask = self.scores.mask["AP"] if self.scores and self.scores.mask else float("nan")
        return DetectResult(self.run, ended.complete, ended.progress.step, box, mask, ended.stopped_by)


def in_words(scores: DetectionScores) -> str:
    """Format the main figures."""
    said = f"box AP {scores.box['AP']:.2f} %, AP50 {scores.box['AP50']:.2f} %"
    if scores.mask is not None:
        said += f"; mask AP {scores.mask['AP']:.2f} %, AP50 {scores.mask['AP50']:.2f} %"
    return said


def objects_of(annotations: list[dict[str, Tensor]], shown: list[Size], size: Size) -> Objects:
    """Return the objects of a micro-batch as the detector takes them: classes from 1, masks unpacked."""
    targets = []
    for arrays in annotations:
        target = {"boxes": arrays["boxes"], "labels": arrays["labels"] + 1}
        if "masks" in arrays:
            target["masks"] = unpacked(arrays["masks"], size[1])
        targets.append(target)
    return Objects(shown, targets)


def resolve(
    config: DetectConfig, backbone: PyramidBackbone, training: InstanceImages, say: Callable[[str], None]
) -> DetectConfig:
    """Return ``config`` with the values that follow from the encoder and the data filled in."""
    head = config.head
    if head.masks == "auto":
        head = replace(head, masks="yes" if training.has_masks else "no")
    for setting, wanted in (
        ("head.masks = yes", head.masks == "yes"),
        (f"paste = {config.paste}", config.paste),
    ):
        if wanted and not training.has_masks:
            raise UsageError(f"{setting}: {config.data} has boxes only, and no masks")
    return replace(resolve_dense(config, backbone, training, say), head=head)
