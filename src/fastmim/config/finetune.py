"""The configuration of fine-tuning for classification (paper: table 12)."""

from dataclasses import dataclass, field
from typing import Literal

from fastmim.config.run import RunConfig, check_size
from fastmim.config.settings import check_least
from fastmim.data.labelled import parse_labels
from fastmim.data.transforms.augment import AugmentConfig
from fastmim.data.transforms.crops import CropConfig
from fastmim.encoders.registry import is_custom
from fastmim.errors import UsageError
from fastmim.mim.grids import Size
from fastmim.train.optim import OptimConfig
from fastmim.train.schedules import ScheduleConfig
from fastmim.train.stages import Stage
from fastmim.weights.spec import SCRATCH, parse_weights

PAPERS_LR, PAPERS_LAYER_DECAY = 1e-3, 0.75  # the centre of its grid


@dataclass(frozen=True)
class FinetuneConfig(RunConfig):
    """Everything that `fastmim finetune` can be told."""

    encoder: str = ""
    """Where the weights come from: a run's folder, its encoder.safetensors, timm:NAME for timm's own, none to
    begin from scratch with --model; or with --model a file of timm's keys, or a released checkpoint as
    mae:FILE, simmim:FILE or fastmim:FILE."""
    data: str = ""
    """Images with classes: a folder with train/ and val/, each with a folder a class; one folder of such
    folders, .parquet, a saved dataset, hf:NAME[:SPLIT] or demo:digits, of which --val-share is kept."""
    model: str | None = None
    """With --encoder none, or with a file that does not name it: timm name of the backbone, or
    package.module:factory of your own. With a file that names such a factory: the same name, without which it
    is not imported."""
    image_size: int | tuple[int, int] = 224
    """Side, or height and width, of the images that the model sees, in pixels."""
    epochs: float = 100.0
    """Passes over the labelled images (paper: 100)."""
    batch_size: int = 256
    """Images an optimiser step, over all devices and micro-batches (paper: 1024)."""
    labels: str | None = None
    """Labels to use: a share of each class (0.01), or a number of each (10/class), drawn by the seed.
    Default: all."""
    val_share: float = 0.2
    """Share of each class that is kept to measure on, where the data has no such split."""
    split_seed: int = 0
    """Draws them; apart from --seed, so that runs of several seeds are measured on the same images."""
    evaluations: int = 10
    """How often at most, evenly over the run, the accuracy is measured."""
    pool: Literal["avg", "token", "model"] = "avg"
    """What the classifier sees: the mean of the tokens (as in the paper's released code), the class token, or
    what the model does by itself. Backbones without a class token have one way only."""
    drop_path: float = 0.1
    """Stochastic depth, 0..1 (paper: ViT-B and Swin-B 0.1, Swin-L 0.3)."""
    layer_decay: float | None = None
    """Factor from each layer's learning rate to that of the layer before it (paper: ViT-B 0.7, Swin-B 0.8,
    Swin-L 0.75); 1: none. Default: 0.75, and 1 from scratch."""
    layer_decay_blocks: int = 1
    """Blocks in a row that count as a layer there (ConvNeXt V2's authors: 3)."""
    head_std: float | None = None
    """Standard deviation of the classifier's first weights. Default: 2e-5, and 0.02 from scratch."""
    ema: float | None = None
    """Decay of a running mean of the weights, which then is what is measured and exported. Default: none."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(base_lr=PAPERS_LR, betas=(0.9, 0.999)))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(min_lr=1e-6))
    crop: CropConfig = field(default_factory=lambda: CropConfig(scale=(0.08, 1.0)))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, {"split_seed": 0, "evaluations": 1, "layer_decay_blocks": 1})
        check_size(self.size)
        if not 0 < self.val_share < 1:
            raise UsageError(f"val_share = {self.val_share} must be a share, 0 < val_share < 1")
        for name in ("drop_path", "head_std"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UsageError(f"{name} = {value} must be in 0..1")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UsageError(f"layer_decay = {self.layer_decay} must be above 0 and at most 1")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"ema = {self.ema} must be between 0 and 1, such as 0.9999")
        if self.labels is not None:
            parse_labels(self.labels)
        self._check_model()

    def _check_model(self) -> None:
        """Raise UsageError where the source of weights and the model do not go together."""
        spec = parse_weights(self.encoder)
        if spec.kind == "scratch" and not self.model:
            raise UsageError("model is missing: with encoder = none, give the name of a backbone")
        if spec.kind == "released" and not self.model:
            raise UsageError(f"model is missing: {self.encoder} does not say which model of timm's it is of")
        if not spec.names_its_model:
            return
        if self.model_kwargs:
            raise UsageError(
                f"model_kwargs = {self.model_kwargs} go with encoder = none only: {self.encoder} says which "
                "model it is"
            )
        if self.model and (spec.kind == "timm" or not is_custom(self.model)):
            raise UsageError(
                f"model = {self.model!r} goes with encoder = none only: {self.encoder} says which model it is"
            )

    @property
    def known_layer_decay(self) -> float:
        """What is given, or follows from the weights."""
        if self.layer_decay is not None:
            return self.layer_decay
        return 1.0 if self.encoder == SCRATCH else PAPERS_LAYER_DECAY

    @property
    def known_head_std(self) -> float:
        """What is given, or follows from the weights."""
        if self.head_std is not None:
            return self.head_std
        return 0.02 if self.encoder == SCRATCH else 2e-5

    @property
    def size(self) -> Size:
        """(H, W) in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def course(self) -> tuple[Stage, ...]:
        """The run as one stage."""
        return (Stage(self.image_size, None if self.steps else self.epochs, self.steps),)
