"""The configuration of a run: every owner's settings in one frozen dataclass, as flags, YAML or Python."""

import difflib
import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import yaml
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from fastmim.data.crops import CropConfig
from fastmim.decoders import DecoderConfig
from fastmim.encoders.adapter import EncoderConfig
from fastmim.errors import UsageError
from fastmim.grids import Size
from fastmim.masking import Masking
from fastmim.targets import TargetConfig
from fastmim.train.device import Precision
from fastmim.train.optim import OptimConfig
from fastmim.train.schedules import ScheduleConfig
from fastmim.train.stages import Stage, parse_stages

T = TypeVar("T")


DEFAULT_SIZE = 128  # pixels; the paper's
DEFAULT_EPOCHS = 200.0


def _stages(value: Any) -> Any:
    """Stages as text become Stage objects, one by one or all in one."""
    if isinstance(value, str):
        return parse_stages(value)
    if isinstance(value, list | tuple):
        parts = (parse_stages(part) if isinstance(part, str) else (part,) for part in value)
        return tuple(itertools.chain.from_iterable(parts))
    return value


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that `fastmim pretrain` can be told."""

    data: str = ""
    """Images: a folder (nested or not), a .tar, .parquet file(s), a saved Hugging Face dataset,
    hf:NAME[:SPLIT], demo:photos or demo:digits. Labels are ignored."""
    out: str = ""
    """Folder that the run is written to."""
    model: str = "vit_base_patch16_224"
    """timm name of the backbone, or package.module:factory of your own; `fastmim backbones` lists them."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model or of the factory, as JSON: '{"window_size": 8}'."""
    in_chans: int = 3
    """Channels of the images: 3 is RGB, 1 is grey, any other number needs images that have it."""
    image_size: int | tuple[int, int] | None = None
    """Side, or height and width, of the crops that the model sees, in pixels. Default: 128."""
    epochs: float | None = None
    """Passes over the data (paper: 400 or 800 on ImageNet-1K). Default: 200, or --steps."""
    steps: int | None = None
    """Optimiser steps, in place of --epochs."""
    stages: Annotated[tuple[Stage, ...], BeforeValidator(_stages)] = ()
    """FastMIM-P, images that grow: 128x200e,160x100e, in place of --image-size, --epochs and --steps.
    SIZExEPOCHSe or SIZExSTEPSs, with @BATCH or @BATCH/MICRO where they change."""
    batch_size: int = 256
    """Images an optimiser step, over all devices and micro-batches (paper: 2048)."""
    micro_batch: int | None = None
    """Images a device holds at a time. Default: what fits, up to 64 on a CPU."""
    seed: int = 0
    """Fixes everything that is drawn: weights, order, crops, masks."""
    held_out: int = 64
    """Images kept from training to measure on; at most a tenth of the data."""
    max_unreadable: float = 0.05
    """Share of the images that may be unreadable before the run stops."""
    workers: int | None = None
    """Loader processes a device. Default: this machine's CPUs, less one, at most 8. 0: none."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""
    devices: int = 1
    """Devices on each machine. Under torchrun or SLURM: as many as there are processes."""
    num_nodes: int = 1
    """Machines."""
    precision: Precision = "auto"
    """auto: bf16-mixed where the device is faster in it, else 32-true. HOG and loss are always float32."""
    deterministic: bool = True
    """Only deterministic kernels, so that a resumed run ends bit for bit as one that never stopped."""
    log_every_steps: int = 10
    """Steps between two lines of metrics.jsonl."""
    evaluations: int = 20
    """How often at most, evenly over the run, the loss on held-out images is measured."""
    checkpoint_every_minutes: float = 10.0
    """Minutes between two checkpoints."""
    checkpoint_every_steps: int | None = None
    """Steps between two checkpoints, in place of minutes."""
    bn_recalibrate: bool = False
    """At the end, estimate the running statistics of batch norms anew, on unmasked images."""
    bn_images: int = 1024
    """Images that --bn-recalibrate uses."""
    keep_checkpoints: int = 1
    """Checkpoints kept: last.ckpt and, above 1, the ones before it in checkpoints/."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    mask: Masking = field(default_factory=Masking)
    target: TargetConfig = field(default_factory=TargetConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    crop: CropConfig = field(default_factory=CropConfig)

    def __post_init__(self) -> None:
        at_least = {
            "epochs": 0.0,
            "steps": 1,
            "batch_size": 1,
            "micro_batch": 1,
            "held_out": 1,
            "max_unreadable": 0,
            "workers": 0,
            "devices": 1,
            "num_nodes": 1,
            "log_every_steps": 1,
            "evaluations": 1,
            "checkpoint_every_minutes": 0,
            "checkpoint_every_steps": 1,
            "keep_checkpoints": 1,
            "seed": 0,
            "in_chans": 1,
            "bn_images": 1,
        }
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UsageError(f"{name} = {value} must be at least {least}")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise UsageError(f"epochs = {self.epochs} must be above 0 and finite")
        for name in ("image_size", "epochs", "steps"):
            if self.stages and getattr(self, name) is not None:
                raise UsageError(
                    f"{name} = {getattr(self, name)}: stages have their own; give {name} None, or stages ''"
                )
        if min(self.size) < 2:
            raise UsageError(f"image_size = {self.image_size} must be at least 2 pixels")
        count = self.devices * self.num_nodes
        for batch_size in {self.batch_size, *(stage.batch_size or self.batch_size for stage in self.stages)}:
            if batch_size % count:
                raise UsageError(f"batch_size = {batch_size} must be a multiple of the {count} devices")
        if self.crop.mean is not None and len(self.crop.mean) != self.in_chans:
            raise UsageError(
                f"crop.mean has {len(self.crop.mean)} numbers, but in_chans = {self.in_chans}: give one a "
                "channel, or crop.mean None and crop.std None to have them measured"
            )

    @property
    def course(self) -> tuple[Stage, ...]:
        """The stages of the run: one, where none are given."""
        if self.stages:
            return self.stages
        epochs = None if self.steps else self.epochs or DEFAULT_EPOCHS
        return (Stage(self.image_size or DEFAULT_SIZE, epochs, self.steps),)

    @property
    def size(self) -> Size:
        """(H, W) in pixels, of the first stage."""
        return self.course[0].size


def build(cls: type[T], settings: Mapping[str, Any], where: str = "") -> T:
    """Make a configuration from plain values; dotted names (``{"mask.ratio": 0.6}``) work too.

    Raises:
        UsageError: an unknown key (the nearest known one is named) or a value of the wrong kind.
    """
    nested = _nest(settings)
    _check_keys(cls, nested, where)
    try:
        return TypeAdapter(cls).validate_python(nested)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, UsageError):
            raise UsageError(f"{where}{cause}") from error
        kinds = ("tuple[", "int", "float", "list[")  # of a union, which pydantic names, too
        name = ".".join(str(part) for part in first["loc"] if not str(part).startswith(kinds))
        raise UsageError(f"{where}{name} = {first['input']!r}: {first['msg'].lower()}") from error


def merge(base: T, settings: Mapping[str, Any], where: str = "") -> T:
    """``base`` with ``settings`` (nested or dotted) laid over it.

    Stages take the place of the one size and length that ``base`` has.
    """
    values: dict[str, Any] = asdict(base)  # type: ignore[call-overload]
    if settings.get("stages"):
        values |= {"image_size": None, "epochs": None, "steps": None}
    return build(type(base), _overlay(values, _nest(settings)), where)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file. Raises UsageError where it is missing or no mapping."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UsageError(f"config: {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"config: {path} is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"config: {path} must hold names and values, not a {type(values).__name__}")
    return values


def to_yaml(config: Any) -> str:
    """A configuration as YAML that `read_yaml` and `merge` turn back into the same."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False, default_flow_style=None, width=100)


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the settings that differ, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for item in fields(old):
        a, b = getattr(old, item.name), getattr(new, item.name)
        if is_dataclass(a):
            found |= {f"{item.name}.{name}": pair for name, pair in differences(a, b).items()}
        elif a != b:
            found[item.name] = (a, b)
    return found


def resolved(
    config: PretrainConfig,
    stride: int,
    cell: int,
    model_kwargs: Mapping[str, Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> PretrainConfig:
    """``config`` with what follows from encoder and data written out: the file alone repeats the run."""
    (stage, *more) = config.course
    return replace(
        config,
        model_kwargs={name: value for name, value in model_kwargs.items() if name != "in_chans"},
        image_size=None if more or config.stages else stage.image_size,
        epochs=None if more or config.stages else stage.epochs,
        crop=replace(config.crop, mean=mean, std=std),
        mask=replace(config.mask, size=config.mask.size or stride),
        target=replace(config.target, cell=cell if "hog" in config.target.name else config.target.cell),
    )


def _nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        head, _, rest = str(name).partition(".")
        nested = _overlay(nested, {head: _nest({rest: value}) if rest else value})
    return nested


def _overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for name, value in over.items():
        old = result.get(name)
        deep = isinstance(value, Mapping) and isinstance(old, Mapping) and name != "model_kwargs"
        result[name] = _overlay(old, value) if deep else value  # type: ignore[arg-type]
    return result


def _check_keys(cls: Any, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    hints = get_type_hints(cls)
    for name, value in values.items():
        if name not in hints:
            close = difflib.get_close_matches(name, hints, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(hints)}"
            raise UsageError(f"{where}unknown setting {prefix}{name}; {hint}")
        if is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                inner = ", ".join(item.name for item in fields(hints[name]))
                raise UsageError(f"{where}{prefix}{name} = {value!r} must hold settings by name: {inner}")
            _check_keys(hints[name], value, where, f"{prefix}{name}.")
        elif name == "stages" and isinstance(value, list | tuple):
            for number, stage in enumerate(value):
                if isinstance(stage, Mapping):
                    _check_keys(Stage, stage, where, f"{prefix}{name}.{number}.")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
