"""Fine-tuning augmentations from timm: RandAugment, random erasing, mixup and CutMix (paper: table 12).

timm draws from the global generators of Python and NumPy: `seeded` sets both and restores them afterwards, so
that the draws are a function of the seed. Random erasing draws from torch's generator, which the training
loop seeds.
"""

import contextlib
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from fastmim.data.decode.pixels import Pixels
from fastmim.data.settings import AugmentConfig
from fastmim.system.size import Size

MOST_SHIFT = 0.45  # largest translation by RandAugment, as a share of the image's shorter side


class RandAugment:
    """Apply two operations drawn from ``seeds`` to an 8-bit crop (H, W, 3); return other crops unchanged."""

    def __init__(self, config: AugmentConfig, size: Size, mean: tuple[float, ...]) -> None:
        fill = tuple(min(255, round(255 * value)) for value in mean)
        hparams = {"translate_const": int(MOST_SHIFT * min(size)), "img_mean": fill}
        self.transform = rand_augment_transform(
            f"rand-m{config.rand_magnitude:g}-mstd{config.rand_std:g}-inc1", hparams
        )
        for operation in self.transform.ops:
            if operation.name.startswith("Posterize"):
                operation.level_fn = partial(_at_least_one_bit, operation.level_fn)

    def __call__(self, crop: Pixels, seeds: tuple[int, ...]) -> Pixels:
        if crop.dtype != np.uint8 or crop.shape[2] != 3:
            return crop
        with seeded(seeds):
            return np.asarray(self.transform(Image.fromarray(crop)))


def _at_least_one_bit(level_fn: Callable[..., tuple[int]], level: float, hparams: Any) -> tuple[int]:
    """Keep Posterize at one bit or more: timm asks for none at the highest levels, which Pillow refuses."""
    return (max(1, level_fn(level, hparams)[0]),)


class Mixing:
    """Erase and mix: images and classes -> mixed images (B, C, H, W) and soft targets (B, classes)."""

    def __init__(self, config: AugmentConfig, classes: int) -> None:
        self.classes = classes
        self.smoothing = config.smoothing
        self.erase: Any = None
        if config.erase:
            self.erase = RandomErasing(config.erase, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]
        self.mix: Any = None
        if config.mixup or config.cutmix:
            self.mix = Mixup(  # type: ignore[no-untyped-call]
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                label_smoothing=config.smoothing,
                num_classes=classes,
            )

    def __call__(
        self, images_BCHW: Tensor, labels_B: Tensor, seeds: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        images = images_BCHW
        with seeded(seeds):
            if self.erase is not None:
                self.erase.device = images.device
                images = self.erase(images)
            if self.mix is None:
                return images, self.soft(labels_B)
            even = len(images) // 2 * 2  # timm mixes pairs: the last image of an odd batch stays unmixed
            mixed, targets = images[even:], self.soft(labels_B[even:])
            if even:
                pairs, soft = self.mix(images[:even], labels_B[:even])
                mixed, targets = torch.cat([pairs, mixed]), torch.cat([soft, targets])
            return mixed, targets

    def soft(self, labels_B: Tensor) -> Tensor:
        """Return smoothed one-hot targets (B, classes) of unmixed images."""
        targets: Tensor = mixup_target(  # type: ignore[no-untyped-call]
            labels_B, self.classes, smoothing=self.smoothing
        )
        return targets


@contextlib.contextmanager
def seeded(seeds: tuple[int, ...]) -> Iterator[None]:
    """Seed Python's and NumPy's global generators within the block, and restore their states afterwards."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    first, second = np.random.SeedSequence(seeds).generate_state(2)
    random.seed(int(first))
    np.random.seed(int(second))  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
