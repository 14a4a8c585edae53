"""Configuration of fine-tuning for classification (paper: table 12)."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from fastmim.config.run import BatchSize, RunConfig, check_size
from fastmim.data.settings import AugmentConfig, CropConfig, parse_labels
from fastmim.encoders.names import is_custom
from fastmim.errors import UsageError
from fastmim.system.bounds import NonNegativeInt, PositiveFloat, PositiveInt, Share
from fastmim.system.size import Size
from fastmim.train.settings import OptimConfig, ScheduleConfig
from fastmim.train.stages import StageConfig
from fastmim.weights.spec import SCRATCH, parse_weights

PAPERS_LR, PAPERS_LAYER_DECAY = 1e-3, 0.75  # centre of the paper's grid search


@dataclass(frozen=True)
class FinetuneConfig(RunConfig):
    """Settings of `fastmim finetune`."""

    verb = "finetune"

    encoder: str = ""
    """Where the weights come from: a run's folder, its encoder.safetensors, timm:NAME for timm's own, none to
    train from scratch, with --model; or, with --model, a file with timm's keys or a released checkpoint:
    mae:FILE, simmim:FILE or fastmim:FILE."""
    data: str = ""
    """Labelled images: a folder with train/ and val/, each with one folder per class.
    Or, with --val-share held out: one such folder, .parquet, saved dataset, hf:NAME[:SPLIT], demo:digits."""
    model: str | None = None
    """With --encoder none, or a file that does not name its model: timm name of the backbone, or
    package.module:factory. With a file that names a factory: the same name, which allows its import."""
    image_size: int | tuple[int, int] = 224
    """Size of the model's input images in pixels: side, or height and width."""
    epochs: PositiveFloat = 100.0
    """Passes over the labelled images (paper: 100)."""
    batch_size: BatchSize = 256
    """Images per optimiser step, over all devices and micro-batches (paper: 1024)."""
    labels: str | None = None
    """Labels to use: a share of each class (0.01), or a number per class (10/class), drawn by --seed.
    Default: all."""
    val_share: Share = 0.2
    """Share of each class that is held out for validation, if the data has no validation split."""
    split_seed: NonNegativeInt = 0
    """Seed of the train/validation split. Separate from --seed, so that all seeds share one split."""
    evaluations: PositiveInt = 10
    """Maximum number of accuracy evaluations, evenly spaced over the run."""
    pool: Literal["avg", "token", "model"] = "avg"
    """Pooling: avg (mean of tokens, as in the paper's released code), token (class token) or model (its own).
    Backbones without a class token have one way only."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Drop path rate (stochastic depth), 0..1 (paper: ViT-B and Swin-B 0.1, Swin-L 0.3)."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Layer-wise learning rate decay: factor from each layer to the one before it; 1: none.
    Default: 0.75, or 1 from scratch (paper: ViT-B 0.7, Swin-B 0.8, Swin-L 0.75)."""
    layer_decay_blocks: PositiveInt = 1
    """Consecutive blocks that count as one layer of --layer-decay (ConvNeXt V2's authors: 3)."""
    head_std: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Standard deviation of the classifier's initial weights. Default: 2e-5, or 0.02 from scratch."""
    ema: Share | None = None
    """Decay of a moving average of the weights (EMA), which is evaluated and exported. Default: none."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(base_lr=PAPERS_LR, betas=(0.9, 0.999)))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(min_lr=1e-6))
    crop: CropConfig = field(default_factory=lambda: CropConfig(scale=(0.08, 1.0)))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.size)
        if self.labels is not None:
            parse_labels(self.labels)
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
    def known_head_std(self) -> float:
        """The standard deviation of the head, with the default that depends on the weights."""
        if self.head_std is not None:
            return self.head_std
        return 0.02 if self.encoder == SCRATCH else 2e-5

    @property
    def size(self) -> Size:
        """(H, W) in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def planned_stages(self) -> tuple[StageConfig, ...]:
        """The run as a single stage."""
        return (StageConfig(self.image_size, None if self.steps else self.epochs, self.steps),)
