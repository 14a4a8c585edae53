"""Settings of `fastmim bench`. This module needs no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from fastmim.config import PretrainConfig
from fastmim.system.bounds import PositiveInt, check_bounds
from fastmim.train.settings import KernelConfig, Precision

Part = Literal[
    "step",
    "hog",
    "loader",
    "packs",
    "memory",
    "shared",
    "growth",
    "dense",
    "methods",
    "all",
    "document",
]
PARTS: tuple[str, ...] = get_args(Part)[:-2]
NOT_IN_ALL = "methods"  # takes as long as all the rest
STEP_MODELS = ("vit_base_patch16_224", "swin_base_patch4_window7_224", "convnext_base")
HOG_ROUNDS = 5  # for each round of steps, since HOG is fast
LOADER_ROUNDS = 2
SMALL, SMALL_SIZE = "vit_tiny_patch16_224", 64
DENSE_BATCH, DENSE_ROUNDS = 2, 3
DENSE_LEAST = 256  # side of the images: detectors need some
SHARED_BATCH = 8  # of the large model: a step must be much shorter than a turn


@dataclass(frozen=True)
class BenchConfig:
    """Measure speed and memory on this machine, as ratios measured side by side in one run.

    step: the training step against the device's peak and the bare backbone; hog: HOG against its usual
    implementation; loader: against torchvision's pipeline; packs: similarity of crops of packs to crops of
    the files, by short side; memory: against the same step at 224; shared: a small and a large model's step
    on a CPU, quiet and alongside a busy process; growth: time and memory against batch, resolution and depth;
    dense: a step of Mask R-CNN and UperNet against those of other libraries; all: all of these;
    methods: a step of each method against FastMIM's (paper: figure 2 and table 3);
    document: a page from the JSON of an earlier run.
    """

    part: Annotated[Part, tyro.conf.Positional, tyro.conf.arg(metavar="PART")]
    json: str | None = None
    """File to write the figures to; for document: to read them from. Default: bench.json, or bench-PART.json
    for a single part."""
    page: str = "performance.md"
    """For document: file to write; the plot is written next to it."""
    models: tuple[str, ...] = STEP_MODELS
    """Backbones of step."""
    model: str = STEP_MODELS[0]
    """Backbone of memory and growth, and the large one of shared."""
    image_size: PositiveInt = 128
    """Side of the images, in pixels."""
    batch_size: PositiveInt = 64
    """Images per step."""
    growth_batch: PositiveInt = 32
    """Images per step while resolution or depth grows."""
    methods_batch: PositiveInt = 16
    """Images per step of each method; models, sizes and settings are those of the recipes."""
    data: str | None = None
    """JPEGs for loader and packs: a folder or tar. Default: images generated from the embedded photos."""
    rounds: PositiveInt = 3
    """Measured turns of each contestant in step, hog and loader."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""
    precision: Precision = "auto"
    """As for `fastmim pretrain`."""
    kernels: KernelConfig = field(default_factory=KernelConfig)

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def file(self) -> Path:
        whole = self.part in ("all", "document")
        return Path(self.json or ("bench.json" if whole else f"bench-{self.part}.json"))

    def config(self, model: str, batch_size: int) -> PretrainConfig:
        return PretrainConfig(
            model=model,
            image_size=self.image_size,
            batch_size=batch_size,
            accelerator=self.accelerator,
            precision=self.precision,
            kernels=self.kernels,
        )
