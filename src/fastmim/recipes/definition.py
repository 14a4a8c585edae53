"""Recipes, their settings as YAML, and small runs that test them."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

from fastmim.config import FinetuneConfig, PretrainConfig, TransferConfig, resolved, to_yaml
from fastmim.methods.settings import DistillConfig
from fastmim.recipes.backbones import narrow_kwargs
from fastmim.weights.spec import SCRATCH

if TYPE_CHECKING:
    from fastmim.encoders.adapter import Encoder

C = TypeVar("C", bound=TransferConfig)
NO_FIGURE = "no figure"
MARKED = " (the paper's; not measured here)"
SMOKE_SIDE = 64  # pixels
SMOKE_SHARE = 0.02  # of the digits, for validation


@dataclass(frozen=True)
class Recipe:
    """A run of the paper."""

    name: str
    """TABLE/ROW, or TABLE/ROW-COLUMN if the row has several runs."""
    table: str
    """Number of the table, subject of the comparison, and meaning of the figures."""
    title: str
    notes: str
    """Settings that the paper omits or contradicts."""
    config: PretrainConfig | TransferConfig
    """Complete settings but for ``data`` and ``out``."""
    paper: str
    """The paper's figure, which was not measured with this code."""
    backbone: str
    """timm name of the backbone."""
    hardware: str = "8 V100 GPUs (the paper's)"
    """Hardware behind the figure; empty if the paper has no figure."""

    @property
    def verb(self) -> str:
        """Command of fastmim that runs the recipe."""
        return self.config.verb

    @property
    def command(self) -> str:
        """Command line of the run, on the paper's hardware and data."""
        data = {"detect": "coco", "segment": "ade20k"}.get(self.verb, "imagenet")
        if self.verb == "pretrain":
            data = "imagenet22k" if "in22k" in self.name else "imagenet/train"
        return f"fastmim {self.verb} --recipe {self.name} --data {data} --out runs/{self.name} --devices 8"

    @property
    def settings(self) -> str:
        """The configuration as YAML; for pre-training, with the values that follow from the backbone."""
        return to_yaml(resolve(self.config) if isinstance(self.config, PretrainConfig) else self.config)

    @property
    def header(self) -> str:
        """Title, notes, figure and command, as YAML comments to precede the settings."""
        lines = [
            self.title,
            *self.notes.splitlines(),
            "",
            f"paper:    {self.paper}{'' if self.paper == NO_FIGURE else MARKED}",
            f"          {self.table}",
            *([f"hardware: {self.hardware}"] if self.hardware else []),
            f"command:  {self.command}",
        ]
        return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def resolve(config: PretrainConfig) -> PretrainConfig:
    """Return ``config`` with the values that follow from the backbone filled in; no weights are drawn."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    from fastmim.encoders.build import build_encoder
    from fastmim.encoders.registry import without_memory
    from fastmim.methods.registry import METHODS
    from fastmim.mim.targets import build_target

    size = METHODS[config.method].encoder_size(config.size)
    settings = replace(config.encoder, init="timm")
    build = partial(build_encoder, config.model, size, config.in_chans, config.model_kwargs, settings)
    encoder = cast("Encoder", without_memory(build))
    cell = build_target(config.target, encoder.stride).cell
    mean, std = config.crop.mean or IMAGENET_DEFAULT_MEAN, config.crop.std or IMAGENET_DEFAULT_STD
    return resolved(config, encoder.stride, cell, encoder.full_kwargs, mean, std)


def smoke(config: PretrainConfig) -> PretrainConfig:
    """Return the same run with a narrow backbone and decoder, on a CPU, for two steps or one per stage."""
    return replace(
        config,
        data=config.data or "demo:photos",
        model_kwargs={**config.model_kwargs, **narrow_kwargs(config.model)},
        decoder=replace(config.decoder, width=32),
        distill=_smoke_teacher(config),
        steps=None if config.stages else 2,
        stages=tuple(
            replace(stage, epochs=None, steps=1, batch_size=None, micro_batch=None) for stage in config.stages
        ),
        batch_size=4,
        held_out=4,
        workers=0,
        accelerator="cpu",
        log_every_steps=1,
    )


def _smoke_teacher(config: PretrainConfig) -> DistillConfig:
    """Replace the teacher, if any, by a narrow model like the student, with random weights."""
    if not config.distill.teacher:
        return config.distill
    kwargs = narrow_kwargs(config.model)
    return replace(config.distill, teacher=SCRATCH, model=config.model, model_kwargs=kwargs)


def smoke_transfer(config: C, model: str) -> C:
    """Return the same task on a narrow ``model``, from scratch, on a CPU, for two steps."""
    few = replace(
        config,
        encoder=SCRATCH,
        model=model,
        model_kwargs=narrow_kwargs(model),
        image_size=SMOKE_SIDE,
        steps=2,
        batch_size=4,
        workers=0,
        accelerator="cpu",
        log_every_steps=1,
        evaluations=1,
    )
    if not isinstance(few, FinetuneConfig):
        return few
    digits = config.data or "demo:digits"
    return cast("C", replace(few, data=digits, labels="2/class", val_share=SMOKE_SHARE))
