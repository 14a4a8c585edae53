"""What a recipe is, what a run makes of it, and the small run that tries it."""

from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from fastmim.config import FinetuneConfig, PretrainConfig, resolved, to_yaml
from fastmim.methods.settings import DistillConfig
from fastmim.recipes.backbones import narrow_kwargs
from fastmim.weights.spec import SCRATCH

NO_FIGURE = "no figure"
MARKED = " (the paper's; not measured here)"
SMOKE_SIDE = 64  # pixels
SMOKE_SHARE = 0.02  # of the digits, to measure on


@dataclass(frozen=True)
class Recipe:
    """One run of the paper."""

    name: str
    """TABLE/ROW, or TABLE/ROW-COLUMN where the row holds several runs."""
    table: str
    """Which it is, what it compares, and what its figures are."""
    title: str
    notes: str
    """What the paper leaves open or contradicts."""
    config: PretrainConfig | FinetuneConfig
    """Only ``data`` and ``out`` are missing."""
    paper: str
    """The paper's figure. It was not measured with this code."""
    backbone: str
    """Name of the model."""
    hardware: str = "8 V100 GPUs (the paper's)"
    """What the figure was made with; empty where there is no figure of the paper."""

    @property
    def verb(self) -> str:
        """The verb of the command line that it is for."""
        return "finetune" if isinstance(self.config, FinetuneConfig) else "pretrain"

    @property
    def command(self) -> str:
        """The run as it is meant."""
        data = "imagenet"
        if self.verb == "pretrain":
            data = "imagenet22k" if "in22k" in self.name else "imagenet/train"
        return f"fastmim {self.verb} --recipe {self.name} --data {data} --out runs/{self.name} --devices 8"

    @property
    def settings(self) -> str:
        """Them as YAML; of pre-training, with what follows from the backbone."""
        return to_yaml(resolve(self.config) if isinstance(self.config, PretrainConfig) else self.config)

    @property
    def header(self) -> str:
        """What stands above the settings, as comments of a YAML file."""
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
    """``config`` with what a run would derive from the backbone written out; no weights are drawn."""
    from fastmim.encoders.adapter import Encoder
    from fastmim.encoders.build import build_encoder
    from fastmim.encoders.registry import without_memory
    from fastmim.methods.registry import METHODS
    from fastmim.mim.targets import build_target

    size = METHODS[config.method].encoder_size(config.size)
    settings = replace(config.encoder, init="timm")
    build = partial(build_encoder, config.model, size, config.in_chans, config.model_kwargs, settings)
    encoder = cast(Encoder, without_memory(build))
    cell = build_target(config.target, encoder.stride).cell
    mean, std = config.crop.mean or IMAGENET_DEFAULT_MEAN, config.crop.std or IMAGENET_DEFAULT_STD
    return resolved(config, encoder.stride, cell, encoder.full_kwargs, mean, std)


def smoke(config: PretrainConfig) -> PretrainConfig:
    """The same run with a narrow backbone and decoder, on a CPU, for two steps or one a stage."""
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
    """In place of a teacher, one of the student's kind that knows nothing."""
    if not config.distill.teacher:
        return config.distill
    kwargs = narrow_kwargs(config.model)
    return replace(config.distill, teacher=SCRATCH, model=config.model, model_kwargs=kwargs)


def smoke_finetuning(config: FinetuneConfig, model: str) -> FinetuneConfig:
    """The same fine-tuning of a narrow ``model``, on a CPU, for two steps: from scratch, on demo:digits."""
    return replace(
        config,
        encoder=SCRATCH,
        model=model,
        model_kwargs=narrow_kwargs(model),
        data=config.data or "demo:digits",
        image_size=SMOKE_SIDE,
        labels="2/class",
        val_share=SMOKE_SHARE,
        steps=2,
        batch_size=4,
        workers=0,
        accelerator="cpu",
        log_every_steps=1,
        evaluations=1,
    )
