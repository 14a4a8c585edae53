"""The teacher that a run is told to have, and the method that learns from it."""

import hashlib
from dataclasses import replace
from typing import NamedTuple

import torch

from fastmim.config import PretrainConfig
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
    """A teacher at the size of one stage of a run."""

    teacher: Teacher
    pairs: tuple[Pair, ...]

    def learner(self, method: Method, config: DistillConfig) -> Distilled:
        """The method that learns from it; its projections are drawn from torch's generator."""
        return Distilled(
            method,
            [pair.student for pair in self.pairs],
            [width for width, _, _ in self.teacher.shapes],
            config.weight,
            config.normalize,
        )


def load_teacher(config: PretrainConfig, method: Method, image_size: Size) -> TeacherSetup | None:
    """The teacher at ``image_size``, the run's, read from its source anew; None where there is none.

    Args:
        method: at that size.

    Raises:
        UsageError: its weights cannot be had, or it does not go with the run.
    """
    told = config.distill
    if not told.teacher:
        return None
    size = told.teacher_size(image_size)
    with torch.random.fork_rng(devices=[]):  # what the run draws does not depend on where this comes from
        loaded = _load(told, config.in_chans, config.seed)
        chans = loaded.metadata["in_chans"]
        if chans != config.in_chans:
            raise UsageError(
                f"distill.teacher = {told.teacher} takes images of {chans} channels, but "
                f"in_chans = {config.in_chans}"
            )
        if hasattr(loaded.model, "reset_classifier"):
            replace_classifier(loaded, 0)
        kwargs = {**loaded.kwargs, **({"num_classes": 0} if "num_classes" in loaded.kwargs else {})}
        digest = _digest(loaded)
        try:
            model, kwargs = resize(loaded.model, loaded.name, kwargs, loaded.size, size)
            encoder = Encoder(model, loaded.name, kwargs, size, config.in_chans)
            pairs = pairs_of(told, len(method.encoder.layers), len(encoder.layers))
        except UsageError as error:
            if str(error).startswith("distill."):
                raise
            raise UsageError(
                f"distill.teacher = {told.teacher} on images of {size[0]}x{size[1]} (distill.size): {error}"
            ) from error
    teacher = Teacher(
        encoder,
        Statistics(*config.crop.statistics),
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
    """``told`` whose ``model`` is the factory that the teacher's file names, which the user trusts unseen."""
    if told.model or not told.teacher:
        return told
    try:
        return replace(told, model=factory_of(told.teacher))
    except UsageError:  # where it is read, it is said what is wrong
        return told


def _statistics(loaded: Loaded) -> Statistics:
    """Mean and standard deviation of the teacher's images; of new weights, those that scale 0..1 to -1..1."""
    half = (0.5,) * loaded.metadata["in_chans"]
    return Statistics(tuple(loaded.metadata["mean"] or half), tuple(loaded.metadata["std"] or half))


def _digest(loaded: Loaded) -> str:
    """Of the weights as they were read, whatever file they came from."""
    digest = hashlib.sha256(loaded.name.split(".")[0].encode())
    for name, value in sorted(loaded.model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
