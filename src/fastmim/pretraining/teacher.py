"""Load the teacher of a run with distillation, and combine it with the method that learns from it."""

import hashlib
from dataclasses import replace
from typing import NamedTuple

import torch

from fastmim.data.settings import CropConfig
from fastmim.encoders.adapter import Encoder
from fastmim.encoders.resize import resize
from fastmim.errors import UsageError
from fastmim.methods.base import Method
from fastmim.methods.distillation import Distilled, Pair, pairs_of
from fastmim.methods.frozen_teacher import Statistics, Teacher
from fastmim.methods.settings import DistillConfig
from fastmim.system.size import Size
from fastmim.weights.load import factory_of, load
from fastmim.weights.loaded import Loaded, replace_classifier
from fastmim.weights.spec import parse_weights


class TeacherSetup(NamedTuple):
    """Teacher at the image size of one stage, and the pairs of layers that are compared."""

    teacher: Teacher
    pairs: tuple[Pair, ...]

    def learner(self, method: Method, config: DistillConfig) -> Distilled:
        """Combine the method with the distillation loss; projections are drawn from torch's generator."""
        return Distilled(
            method,
            [pair.student for pair in self.pairs],
            [width for width, _, _ in self.teacher.shapes],
            config.weight,
            config.normalize,
        )


def load_teacher(
    told: DistillConfig, crop: CropConfig, seed: int, method: Method, image_size: Size
) -> TeacherSetup | None:
    """Load the teacher for images of ``image_size``; None if the settings name no teacher.

    Args:
        crop: the run's crops, with mean and standard deviation.
        seed: of the run; a teacher with random weights draws them from another.
        method: the student, at ``image_size``.
        image_size: (H, W) in pixels of the run's images.

    Raises:
        UsageError: the weights cannot be loaded, or the teacher does not match the run.
    """
    if not told.teacher:
        return None
    size, in_chans = told.teacher_size(image_size), method.encoder.in_chans
    with torch.random.fork_rng(devices=[]):  # the run's draws must not depend on the teacher
        loaded = _load(told, in_chans, seed)
        chans = loaded.metadata["in_chans"]
        if chans != in_chans:
            raise UsageError(
                f"distill.teacher = {told.teacher} takes images of {chans} channels, but "
                f"in_chans = {in_chans}"
            )
        if hasattr(loaded.model, "reset_classifier"):
            replace_classifier(loaded, 0)
        kwargs = {**loaded.kwargs, **({"num_classes": 0} if "num_classes" in loaded.kwargs else {})}
        digest = _digest(loaded)
        try:
            model, kwargs = resize(loaded.model, loaded.name, kwargs, loaded.size, size)
            encoder = Encoder(model, loaded.name, kwargs, size, in_chans)
            pairs = pairs_of(told, len(method.encoder.layers), len(encoder.layers))
        except UsageError as error:
            if str(error).startswith("distill."):
                raise
            raise UsageError(
                f"distill.teacher = {told.teacher} on images of {size[0]}x{size[1]} (distill.size): {error}"
            ) from error
    teacher = Teacher(
        encoder,
        Statistics(*crop.statistics),
        _statistics(loaded),
        [pair.teacher for pair in pairs],
        [method.encoder.layers[pair.student].grid for pair in pairs],
        digest,
    )
    return TeacherSetup(teacher, pairs)


def _load(told: DistillConfig, in_chans: int, seed: int) -> Loaded:
    if parse_weights(told.teacher).kind == "scratch":
        torch.manual_seed(seed + 1)  # not the student's own weights
    try:
        return load(
            told.teacher,
            model=told.model,
            model_kwargs=told.model_kwargs,
            in_chans=in_chans,
            setting="distill.teacher",
        )
    except UsageError as error:
        if str(error).startswith("distill."):
            raise
        raise UsageError(f"distill.teacher = {told.teacher}: {error}") from error


def with_factory(told: DistillConfig) -> DistillConfig:
    """Set ``model`` to the factory that the teacher's file names, if any, so that it is imported."""
    if told.model or not told.teacher:
        return told
    try:
        return replace(told, model=factory_of(told.teacher))
    except UsageError:  # reported when the teacher is loaded
        return told


def _statistics(loaded: Loaded) -> Statistics:
    """Return mean and std of the teacher's images; for random weights, those that map 0..1 to -1..1."""
    half = (0.5,) * loaded.metadata["in_chans"]
    return Statistics(tuple(loaded.metadata["mean"] or half), tuple(loaded.metadata["std"] or half))


def _digest(loaded: Loaded) -> str:
    """Return a digest of architecture and weights, independent of their source."""
    digest = hashlib.sha256(loaded.name.split(".")[0].encode())
    for name, value in sorted(loaded.model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
