"""Settings that all tasks on a pre-trained backbone share."""

from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field

from fastmim.config.run import BatchSize, RunConfig, check_size
from fastmim.data.settings import JitterConfig, images_wanted
from fastmim.encoders.names import is_custom
from fastmim.errors import UsageError
from fastmim.system.bounds import PositiveFloat, PositiveInt, Share
from fastmim.system.size import Size
from fastmim.train.settings import OptimConfig, ScheduleConfig
from fastmim.train.stages import StageConfig, build_plan
from fastmim.weights.spec import SCRATCH, parse_weights

DENSE_WARMUP_STEPS = 1500  # of detection and segmentation in the paper, at most a tenth of the run
PAPERS_LR, PAPERS_LAYER_DECAY = 1e-3, 0.75  # centre of the paper's grid search


@dataclass(frozen=True)
class TransferConfig(RunConfig):
    """Source of the weights, image size, length, layer-wise learning rates, and average of the weights."""

    encoder: str = ""
    """Where the weights come from: a run's folder, its encoder.safetensors, timm:NAME for timm's own, none to
    train from scratch, with --model; or, with --model, a file with timm's keys or a released checkpoint:
    mae:FILE, simmim:FILE or fastmim:FILE."""
    model: str | None = None
    """With --encoder none, or a file that does not name its model: timm name of the backbone, or
    package.module:factory. With a file that names a factory: the same name, which allows its import."""
    image_size: int | tuple[int, int] = 224
    """Size of the model's input images in pixels: side, or height and width."""
    epochs: PositiveFloat = 100.0
    """Passes over the training images."""
    batch_size: BatchSize = 256
    """Images per optimiser step, over all devices and micro-batches."""
    val_share: Share = 0.2
    """Share of the images that is held out for validation, if the data has no validation split."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the train/validation split. Separate from --seed, so that all seeds share one split."""
    evaluations: PositiveInt = 10
    """Maximum number of evaluations, evenly spaced over the run."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Drop path rate (stochastic depth), 0..1."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Layer-wise learning rate decay: factor from each layer to the one before it; 1: none.
    Default: 0.75, or 1 from scratch."""
    layer_decay_blocks: PositiveInt = 1
    """Consecutive blocks that count as one layer of --layer-decay (ConvNeXt V2's authors: 3)."""
    labels: str | None = None
    """Training images whose labels are used. Default: all."""
    ema: Share | None = None
    """Decay of a moving average of the weights (EMA), which is evaluated and exported. Default: none."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(base_lr=PAPERS_LR, betas=(0.9, 0.999)))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(min_lr=1e-6))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.size)
        self._check_model()

    def _check_model(self) -> None:
        """Raise UsageError if the source of weights and the model contradict each other."""
        spec = parse_weights(self.encoder)
        if spec.kind == "scratch" and not self.model:
            raise UsageError("model is missing: with encoder = none, give the name of a backbone")
        if spec.kind == "released" and not self.model:
            raise UsageError(f"model is missing: {self.encoder} does not name its model; give its timm name")
        if not spec.names_its_model:
            return
        if self.model_kwargs:
            raise UsageError(
                f"model_kwargs = {self.model_kwargs} go with encoder = none only: {self.encoder} names "
                "its model"
            )
        if self.model and (spec.kind == "timm" or not is_custom(self.model)):
            raise UsageError(
                f"model = {self.model!r} goes with encoder = none only: {self.encoder} names its model"
            )

    @property
    def known_layer_decay(self) -> float:
        """The layer decay, with the default that depends on the weights."""
        if self.layer_decay is not None:
            return self.layer_decay
        return 1.0 if self.encoder == SCRATCH else PAPERS_LAYER_DECAY

    @property
    def size(self) -> Size:
        """(H, W) in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def planned_stages(self) -> tuple[StageConfig, ...]:
        """The run as a single stage."""
        return (StageConfig(self.image_size, None if self.steps else self.epochs, self.steps),)


@dataclass(frozen=True)
class DenseConfig(TransferConfig):
    """Settings that detection and segmentation share."""

    vit_windows: PositiveInt | None = None
    """For plain vision transformers: side of a window in tokens, within which all blocks attend but four
    evenly spaced ones (ViTDet: 14). Needed for large images. Default: none."""
    labels: str | None = None
    """Training images to use: a share (0.1), or a number above 1 (20), drawn by --seed. Default: all."""
    relative_positions: bool = False
    """For plain vision transformers: add relative positions, initialised with zeros, to the attention (paper:
    table 6, MAE setting)."""
    jitter: JitterConfig = field(default_factory=JitterConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels is not None:
            images_wanted(self.labels, 1)

    def known_schedule(self, images: int) -> ScheduleConfig:
        """Return the schedule, with the default length of the warm-up for a number of training images."""
        if self.schedule.warmup_steps is not None or self.schedule.warmup_epochs is not None:
            return self.schedule
        plan = build_plan(self.planned_stages, images, self.batch_size, self.micro_batch)
        return replace(self.schedule, warmup_steps=min(DENSE_WARMUP_STEPS, plan.total_steps // 10))
