"""The teacher that a run is told to have, and the method that learns from it."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from fastmim.config import PretrainConfig
from fastmim.encoders.adapter import Encoder
from fastmim.encoders.names import is_custom
from fastmim.encoders.registry import create, fit_kwargs
from fastmim.encoders.resize import resize
from fastmim.encoders.trust import Trust
from fastmim.errors import UsageError
from fastmim.methods.base import Method
from fastmim.methods.distillation import Distilled, Pair, pairs_of
from fastmim.methods.frozen_teacher import Statistics, Teacher
from fastmim.methods.settings import NEW, WITH_TIMM_WEIGHTS, DistillConfig
from fastmim.system.size import Size
from fastmim.weights.load import Loaded, factory_of, load_with, replace_classifier, timm_weights
from fastmim.weights.timm_file import timm_file


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
        if loaded.origin["in_chans"] != config.in_chans:
            raise UsageError(
                f"distill.teacher = {told.teacher} takes images of {loaded.origin['in_chans']} channels, but "
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
        Statistics(tuple(loaded.origin["mean"]), tuple(loaded.origin["std"])),
        [pair.teacher for pair in pairs],
        [method.encoder.layers[pair.student].grid for pair in pairs],
        digest,
    )
    return TeacherSetup(teacher, pairs)


def _load(told: DistillConfig, in_chans: int, seed: int) -> Loaded:
    source = told.teacher
    if source == NEW:
        return _new(told, in_chans, seed)
    if source.startswith(WITH_TIMM_WEIGHTS):
        if told.model:
            raise UsageError(
                f"distill.model = {told.model}: distill.teacher = {source} names the model already"
            )
        return timm_weights(
            source.removeprefix(WITH_TIMM_WEIGHTS), told.model_kwargs, setting="distill.teacher"
        )
    path = Path(source).expanduser()
    try:
        if told.model is None or path.is_dir() or (is_custom(told.model) and factory_of_file(path)):
            return _of_this_project(told, path)
        return timm_file(path, told.model, {**told.model_kwargs, **_channels(told, in_chans)})
    except UsageError as error:
        if str(error).startswith("distill."):
            raise
        raise UsageError(f"distill.teacher = {source}: {error}") from error


def _of_this_project(told: DistillConfig, path: Path) -> Loaded:
    trust = Trust.of(told.model)
    named = None if trust.names else told.model  # a factory only says which may be imported
    for name, value in (("model", named), ("model_kwargs", told.model_kwargs)):
        if value:
            raise UsageError(f"distill.{name} = {value}: {told.teacher} says which model it is; leave it out")
    if path.is_file() and path.suffix != ".safetensors":
        raise UsageError(
            f"distill.model is missing: {told.teacher} does not say which model of timm's it is of"
        )
    return load_with(path, {}, trust=trust, setting="distill.model")


def with_factory(told: DistillConfig) -> DistillConfig:
    """``told`` whose ``model`` is the factory that the teacher's file names, which the user trusts unseen."""
    if told.model or told.teacher in ("", NEW) or told.teacher.startswith(WITH_TIMM_WEIGHTS):
        return told
    return replace(told, model=factory_of_file(Path(told.teacher).expanduser()))


def factory_of_file(path: Path) -> str | None:
    """The factory that a file of this project's names; None where it names none, or is of another kind."""
    try:
        return factory_of(path)
    except UsageError:
        return None


def _new(told: DistillConfig, in_chans: int, seed: int) -> Loaded:
    """A teacher that knows nothing."""
    if not told.model:
        raise UsageError("distill.model is missing: with distill.teacher = none, give the name of a model")
    given = {**told.model_kwargs, **_channels(told, in_chans)}
    shape = create(told.model, given)
    settings = getattr(shape, "pretrained_cfg", None) or {}
    side = given.get("img_size") or settings.get("input_size", (3, 224, 224))[1:]
    size = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    kwargs = fit_kwargs(told.model, given, size, in_chans)
    torch.manual_seed(seed + 1)  # not the student's own weights
    origin = {"in_chans": in_chans, "mean": [0.5] * in_chans, "std": [0.5] * in_chans}
    return Loaded(create(told.model, kwargs), told.model, kwargs, origin, size, [], [])


def _channels(told: DistillConfig, in_chans: int) -> dict[str, int]:
    return {} if in_chans == 3 or "in_chans" in told.model_kwargs else {"in_chans": in_chans}


def _digest(loaded: Loaded) -> str:
    """Of the weights as they were read, whatever file they came from."""
    digest = hashlib.sha256(loaded.name.split(".")[0].encode())
    for name, value in sorted(loaded.model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
