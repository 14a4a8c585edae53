"""Configuration of pre-training: all settings in one frozen dataclass."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import BeforeValidator

from fastmim.config.run import RunConfig, check_size
from fastmim.config.settings import differences
from fastmim.data.settings import CropConfig
from fastmim.encoders.settings import EncoderConfig
from fastmim.errors import UsageError
from fastmim.methods.settings import (
    TRAITS,
    DistillConfig,
    LoMaRConfig,
    MethodName,
    UMMAEConfig,
    unused_settings,
)
from fastmim.mim.settings import DecoderConfig, Masking, TargetConfig
from fastmim.system.bounds import PositiveFloat, PositiveInt
from fastmim.system.size import Size
from fastmim.train.settings import OptimConfig, ScheduleConfig
from fastmim.train.stages import StageConfig, parse_stages
from fastmim.weights.spec import SCRATCH, parse_weights

DEFAULT_SIZE = 128  # pixels, as in the paper
DEFAULT_EPOCHS = 200.0
NEEDS_NEW_WEIGHTS = ("depth", "table_window")  # settings of the encoder that change its parameters


def _stages(value: Any) -> Any:
    """Convert stages given as text, one by one or in one string, to StageConfig objects."""
    if isinstance(value, str):
        return parse_stages(value)
    if isinstance(value, list | tuple):
        parts = (parse_stages(part) if isinstance(part, str) else (part,) for part in value)
        return tuple(itertools.chain.from_iterable(parts))
    return value


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """Settings of `fastmim pretrain`."""

    verb = "pretrain"

    data: str = ""
    """Images: a folder (nested or not), .tar, .parquet file(s), saved Hugging Face dataset, hf:NAME[:SPLIT].
    To try it: demo:photos or demo:digits. Labels are ignored."""
    model: str = "vit_base_patch16_224"
    """Backbone: timm name (`fastmim backbones` lists them), or package.module:factory."""
    weights: str = SCRATCH
    """Weights to start from: a run's folder, its encoder.safetensors, timm:NAME for timm's own, or none for
    new ones; or, with --model, a file with timm's keys or a released checkpoint: mae:FILE, simmim:FILE or
    fastmim:FILE. A run and timm:NAME also name the backbone. The position embedding is kept and trained."""
    method: MethodName = "fastmim"
    """Pre-training method. Defaults are those of the method's own paper; flags override them."""
    image_size: int | tuple[int, int] | None = None
    """Size of the training crops in pixels: side, or height and width. Default: 128."""
    epochs: PositiveFloat | None = None
    """Passes over the data (paper: 400 or 800 on ImageNet-1K). Default: 200, unless --steps is given."""
    stages: Annotated[tuple[StageConfig, ...], BeforeValidator(_stages)] = ()
    """Progressive resolution (FastMIM-P): 128x200e,160x100e, instead of --image-size, --epochs and --steps.
    SIZExEPOCHSe or SIZExSTEPSs, with @BATCH or @BATCH/MICRO where they change."""
    held_out: PositiveInt = 64
    """Images held out from training for evaluation; at most a tenth of the data."""
    evaluations: PositiveInt = 20
    """Maximum number of evaluations of the held-out loss, evenly spaced over the run."""
    bn_recalibrate: bool = False
    """At the end, re-estimate the running statistics of batch norms on unmasked images."""
    bn_images: PositiveInt = 1024
    """Number of images for --bn-recalibrate."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    mask: Masking = field(default_factory=Masking)
    target: TargetConfig = field(default_factory=TargetConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    lomar: LoMaRConfig = field(default_factory=LoMaRConfig)
    ummae: UMMAEConfig = field(default_factory=UMMAEConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    crop: CropConfig = field(default_factory=CropConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_heeded()
        if not self.distill.teacher and self.distill != DistillConfig():
            raise UsageError("distill.teacher is missing: the other settings of distill need it")
        spec = parse_weights(self.weights)
        if spec.kind == "missing":
            raise UsageError(
                "weights is empty: give a run's folder, a file, timm:NAME, or none for new weights"
            )
        for name in NEEDS_NEW_WEIGHTS:
            if spec.has_weights and (value := getattr(self.encoder, name)) is not None:
                raise UsageError(f"encoder.{name} = {value} goes with weights = none only")
        if self.distill.teacher and not TRAITS[self.method].encodes_all_tokens:
            able = ", ".join(name for name, traits in TRAITS.items() if traits.encodes_all_tokens)
            raise UsageError(
                f"distill.teacher = {self.distill.teacher}: method = {self.method} does not encode every "
                f"place of an image, as distillation requires; these do: {able}"
            )
        for name in ("image_size", "epochs", "steps"):
            if self.stages and getattr(self, name) is not None:
                raise UsageError(
                    f"{name} = {getattr(self, name)}: stages set it; give {name} None, or stages ''"
                )
        for stage in self.planned_stages:
            check_size(stage.size)
        for stage in self.stages:
            self._check_batch(stage.batch_size or self.batch_size)
        if self.crop.mean is not None and len(self.crop.mean) != self.in_chans:
            raise UsageError(
                f"crop.mean has {len(self.crop.mean)} numbers, but in_chans = {self.in_chans}: give one per "
                "channel, or None for both crop.mean and crop.std to measure them"
            )

    def _check_heeded(self) -> None:
        """Raise UsageError if a setting is given that the method does not use."""
        for path in unused_settings(self.method):
            group, _, name = path.partition(".")
            values = getattr(self, group)
            for changed, (_, value) in differences(type(values)(), values).items():
                if name in ("", changed):
                    raise UsageError(
                        f"{group}.{changed} = {value!r}: method = {self.method} does not use it; leave it out"
                    )

    @property
    def planned_stages(self) -> tuple[StageConfig, ...]:
        """The stages of the run; a single one if none are given."""
        if self.stages:
            return self.stages
        epochs = None if self.steps else self.epochs or DEFAULT_EPOCHS
        return (StageConfig(self.image_size or DEFAULT_SIZE, epochs, self.steps),)

    @property
    def size(self) -> Size:
        """(H, W) of the first stage, in pixels."""
        return self.planned_stages[0].size


def resolved(
    config: PretrainConfig,
    stride: int,
    cell: int,
    model_kwargs: Mapping[str, Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> PretrainConfig:
    """Fill in the settings that follow from encoder and data, so that config.yaml alone repeats the run."""
    (stage, *more) = config.planned_stages
    return replace(
        config,
        model_kwargs={name: value for name, value in model_kwargs.items() if name != "in_chans"},
        image_size=None if more or config.stages else stage.image_size,
        epochs=None if more or config.stages else stage.epochs,
        crop=replace(config.crop, mean=mean, std=std),
        mask=replace(config.mask, size=config.mask.size or stride),
        target=replace(config.target, cell=cell if config.target.uses_cell else config.target.cell),
    )
