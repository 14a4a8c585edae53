"""Load the trained model of a run, and predict with the preprocessing of its evaluation."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from fastmim.config.detect import RcnnConfig
from fastmim.config.segment import SlidingConfig, UperNetConfig
from fastmim.config.settings import build
from fastmim.data.loading.dataset import UnreadableRecord
from fastmim.data.loading.dense import EvalDense
from fastmim.data.loading.eval_loader import EvalLoader
from fastmim.data.loading.whole_images import Geometry, WholeImages
from fastmim.data.loading.workers import answers
from fastmim.data.settings import MAX_PIXELS
from fastmim.data.sources.base import ImageSource, MixedImages
from fastmim.downstream.detection.prediction import DetectionPredictor, detect_all
from fastmim.downstream.detection.rcnn import Detector
from fastmim.downstream.segmentation.evaluation import Predictor
from fastmim.downstream.segmentation.uper_net import Segmenter
from fastmim.encoders.adapter import Encoder
from fastmim.encoders.described import check_described, most_parameters
from fastmim.encoders.limits import limited
from fastmim.encoders.plain_attention import set_plain_attention
from fastmim.encoders.pyramid import FeaturePyramid
from fastmim.encoders.registry import create
from fastmim.encoders.trust import Trust
from fastmim.errors import UsageError
from fastmim.report.objects import Detections
from fastmim.system.size import Size
from fastmim.train.distributed import build_fabric
from fastmim.weights.load import load as load_weights
from fastmim.weights.model_file import MODEL, ModelDescription, read_model
from fastmim.weights.rebuild import count
from fastmim.weights.spec import WEIGHTS

BATCH = 8
Task = Literal["classify", "segment", "detect"]
Image = str | os.PathLike[str] | NDArray[Any]
"""A path, or an array (H, W) or (H, W, C)."""


class Classified(NamedTuple):
    """Classes of one image, the most probable first."""

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


class Segmented(NamedTuple):
    """Class of each pixel of one image."""

    mask: NDArray[np.uint8]
    """(H, W) of the upright image: class numbers from 0."""
    confidence: float
    """Mean over the pixels of the probability of their class."""


Prediction = Classified | Segmented | Detections


@dataclass(frozen=True)
class LoadedModel:
    """A trained classifier, segmenter or detector, with the preprocessing of its evaluation."""

    task: Task
    classes: tuple[str, ...]
    model: nn.Module
    image_size: Size
    """(H, W) of the model's input, in pixels."""
    in_chans: int
    mean: Tensor
    std: Tensor
    fabric: Fabric
    evaluation: SlidingConfig = field(default_factory=SlidingConfig)
    """For segmentation."""
    short_side: int = 0
    """For segmentation: shorter side to which images are scaled."""

    def __repr__(self) -> str:
        height, width = self.image_size
        return f"LoadedModel({self.task}, {len(self.classes)} classes, {height}x{width} pixels)"

    def predict(
        self, images: Image | Sequence[Image], batch: int = BATCH, max_pixels: int = MAX_PIXELS
    ) -> list[Prediction | UnreadableRecord]:
        """Predict images: paths, or arrays (H, W, C) as PIL and NumPy read them.

        Args:
            images: one image, or several.
            batch: images, or windows of segmentation, that are computed at a time.
            max_pixels: limit for an image.

        Returns:
            For each image, in order: `Classified`, `Segmented` or `Detections`; or, if it cannot be read, an
            `UnreadableRecord` with the reason.
        """
        given: Sequence[Image] = images if isinstance(images, list | tuple) else [cast("Image", images)]
        if not given:
            return []
        source: ImageSource = MixedImages(given)
        found = dict(self.predictions(source, np.arange(len(given)), batch, 0, max_pixels))
        return [found[index] for index in range(len(given))]

    def predictions(
        self,
        source: ImageSource,
        indices: NDArray[np.int64],
        batch: int = BATCH,
        workers: int = 0,
        max_pixels: int = MAX_PIXELS,
    ) -> Iterator[tuple[int, Prediction | UnreadableRecord]]:
        """Yield the index and the prediction of each image of a source once; see `predict`."""
        self.model.eval()
        run = {"classify": self._classify, "segment": self._segment, "detect": self._detect}[self.task]
        with torch.inference_mode(), self.fabric.autocast():
            yield from run(source, indices, batch, workers, max_pixels)

    def _classify(
        self, source: ImageSource, indices: NDArray[np.int64], batch: int, workers: int, max_pixels: int
    ) -> Iterator[tuple[int, Prediction | UnreadableRecord]]:
        views = EvalLoader(
            source, indices, self.image_size, self.in_chans, batch, workers, self.mean, self.std, max_pixels
        )
        for images, shown, unreadable in views:
            yield from ((record.index, record) for record in unreadable)
            if not len(images):
                continue
            probabilities = self.model(images).float().softmax(1)
            for index, row in zip(shown.tolist(), probabilities.cpu(), strict=True):
                order = row.argsort(descending=True)
                names = tuple(self.classes[number] for number in order.tolist())
                yield index, Classified(names, tuple(row[order].tolist()))

    def _segment(
        self, source: ImageSource, indices: NDArray[np.int64], batch: int, workers: int, max_pixels: int
    ) -> Iterator[tuple[int, Prediction | UnreadableRecord]]:
        geometry = Geometry(self.image_size, self.short_side, self.evaluation.mode == "whole")
        scales = self.evaluation.scales
        wholes = WholeImages(source, geometry.scale, self.in_chans, scales, max_pixels)
        predictor = Predictor(self.model, self.image_size, self.evaluation, self.mean, self.std, batch)
        questions = [indices[place : place + 1] for place in range(len(indices))]
        for found in answers(EvalDense(wholes), questions, min(workers, len(questions))):
            yield from ((record.index, record) for record in found.unreadable)
            for image in found.images:
                confidence, mask = predictor(image).max(0)
                numbers = mask.to(torch.uint8).cpu().numpy()
                yield image.index, Segmented(numbers, float(confidence.mean()))

    def _detect(
        self, source: ImageSource, indices: NDArray[np.int64], batch: int, workers: int, max_pixels: int
    ) -> Iterator[tuple[int, Prediction | UnreadableRecord]]:
        geometry = Geometry(self.image_size, min(self.image_size), fits=True)
        wholes = WholeImages(source, geometry.scale, self.in_chans, max_pixels=max_pixels)
        predictor = DetectionPredictor(self.model, self.image_size, self.mean, self.std)
        for image, found in detect_all(predictor, wholes, indices, batch, workers):
            if isinstance(image, UnreadableRecord):
                yield image.index, image
            elif found is not None:
                yield image.index, found


def load_model(
    run: str | os.PathLike[str],
    accelerator: str = "auto",
    model: nn.Module | str | None = None,
    trust_code: bool = False,
) -> LoadedModel:
    """Load the trained model of `fastmim finetune`, `segment` or `detect`.

    Args:
        run: the run's folder, or its model.safetensors; for classification, its encoder.safetensors.
        accelerator: auto, cpu, cuda or mps.
        model: the backbone, if the run trained a module; or the factory that the file names.
        trust_code: import and call any factory that the file names.

    Raises:
        UsageError: there is no such model, or it cannot be rebuilt.
    """
    path = Path(run).expanduser()
    fabric = build_fabric(accelerator, 1, 1, "auto")
    if path.name == MODEL or (path / MODEL).is_file():
        return _dense(path, fabric, model, trust_code)
    if path.is_dir() and not (path / WEIGHTS).is_file():
        raise UsageError(f"run: {run} holds neither {MODEL} nor {WEIGHTS}; give the folder of a finished run")
    loaded = load_weights(str(path), model=model, trust_code=trust_code, setting="run")
    classes = loaded.metadata.get("classes")
    if not classes or "num_classes" not in loaded.kwargs:
        raise UsageError(
            f"run: {run} holds no classifier; give the folder of a run of fastmim finetune, segment or detect"
        )
    mean, std = (torch.tensor(loaded.metadata[name], device=fabric.device) for name in ("mean", "std"))
    classifier = loaded.model.to(fabric.device).eval()
    return LoadedModel(
        "classify", tuple(classes), classifier, loaded.size, loaded.metadata["in_chans"], mean, std, fabric
    )


def _dense(path: Path, fabric: Fabric, model: nn.Module | str | None, trust_code: bool) -> LoadedModel:
    """Rebuild a segmenter or detector."""
    described, state = read_model(path)
    where = str(path / MODEL if path.is_dir() else path)
    backbone = _backbone(described, state, where, model, trust_code)
    encoder = Encoder(backbone, described.model, described.kwargs, described.encoder_size, described.in_chans)
    settings, classes = described.settings, len(described.classes)
    whole: nn.Module
    more: dict[str, Any] = {}
    try:
        set_plain_attention(encoder, settings["vit_windows"], bool(settings["relative_positions"]))
        pyramid = FeaturePyramid(encoder, described.image_size)
        if described.task == "segment":
            whole = Segmenter(pyramid, classes, build(UperNetConfig, settings["head"]))
            more = {
                "evaluation": build(SlidingConfig, settings["evaluation"]),
                "short_side": int(settings["short_side"]),
            }
        else:
            whole = Detector(pyramid, classes, build(RcnnConfig, settings["head"]), bool(settings["masks"]))
        whole.load_state_dict(state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{where} does not fit its description: {reason}") from error
    mean, std = (torch.tensor(values, device=fabric.device) for values in (described.mean, described.std))
    return LoadedModel(
        described.task,
        described.classes,
        whole.to(fabric.device).eval(),
        described.image_size,
        described.in_chans,
        mean,
        std,
        fabric,
        **more,
    )


def _backbone(
    described: ModelDescription,
    state: dict[str, Tensor],
    where: str,
    model: nn.Module | str | None,
    trust_code: bool,
) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    numbers = count(state)
    trust = Trust.of(model, everything=trust_code)
    check_described(described.model, described.kwargs, numbers, where, trust)
    with limited(most_parameters(numbers)):
        return create(described.model, described.kwargs)
