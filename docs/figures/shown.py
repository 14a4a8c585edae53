"""What a method makes of a photo, and the panels that show it.

Each method is as it is configured, but for a small backbone and decoder, on which nothing here depends.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from drawing import LINE, SCALE, Bools, Box, Panel, Picture, enlarge, fade, outline, paint, shrink, squares
from matplotlib.colors import hsv_to_rgb, to_hex
from PIL import Image
from skimage.data import chelsea
from timm.data import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data import IMAGENET_DEFAULT_STD as IMAGENET_STD
from torch import Tensor, nn

from fastmim.config import PretrainConfig
from fastmim.encoders.visible.windows import Groups, Windows, find_windows
from fastmim.methods.base import Method
from fastmim.mim.decoders import Decoder
from fastmim.mim.grids import pairs, pick_of_pairs, put_blocks, take_blocks
from fastmim.mim.targets import Hog, Pixels
from fastmim.pretraining import build_method
from fastmim.recipes import smoke
from fastmim.report.samples import ACCENT, FAINT, INK, Samples, draw_lines, target_to_display, to_display
from fastmim.system.size import Size

BLUE = "#3f7cc4"  # features; mask tokens are ACCENT
USUAL = 224  # pixels, of most methods
ENCODED, DECODED, SCORED = "the encoder gets", "the decoder gets", "target, where scored"
EVERYWHERE = "a feature in every place,\nmasked or not"


class Shown(NamedTuple):
    """What a method made of the photo."""

    config: PretrainConfig
    method: Method
    samples: Samples
    mask: Tensor
    """As the method draws it, of one image."""
    places: Tensor
    """(1, K), where on its grid the decoder gets a feature."""
    grid: Size
    """Of the decoder."""

    @property
    def photo(self) -> Picture:
        return shrink(to_display(self.samples.images[0], self.samples))

    @property
    def block(self) -> int:
        """Side of a masked block on the sheet."""
        return round(self.method.block * SCALE)

    @property
    def hidden(self) -> Bools:
        """(h, w): blocks that the encoder does not see."""
        return self.mask[0].numpy()

    @property
    def have(self) -> Bools:
        """(h, w) of the decoder's grid: where it gets a feature."""
        flat = np.zeros(self.grid[0] * self.grid[1], bool)
        flat[self.places[0].numpy()] = True
        return flat.reshape(self.grid)

    @property
    def visible(self) -> Picture:
        """The photo, faint where it is masked."""
        return fade(self.photo, ~enlarge(self.hidden, self.block))

    @property
    def target(self) -> Picture:
        """All of a target of pixels."""
        target, kind = self.samples.target[0], self.method.target
        assert isinstance(kind, Pixels)
        return shrink(target_to_display(target, target, self.samples))


def read_photo(side: int) -> Tensor:
    """The middle of the photo, (1, 3, side, side), normalised."""
    photo = Image.fromarray(chelsea())
    left = (photo.width - photo.height) // 2
    square = photo.crop((left, 0, left + photo.height, photo.height))
    values = np.asarray(square.resize((side, side), Image.Resampling.LANCZOS)) / 255
    normalised = (values - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    return torch.from_numpy(normalised).float().permute(2, 0, 1).unsqueeze(0)


@torch.no_grad()
def show(config: PretrainConfig, seed: int = 0, shallow: bool = True) -> Shown:
    """The method on the photo, with the mask that it draws from ``seed``.

    Args:
        shallow: one block, or one a stage, in place of the backbone's number.
    """
    config = smoke(config)
    if shallow:
        depth = {"depth": 1} if config.model.startswith("vit_") else {"depths": (1, 1, 1, 1)}
        config = replace(config, model_kwargs=config.model_kwargs | depth)
    method = build_method(config).eval()
    images = read_photo(config.size[0])
    mask = method.draw_mask(torch.Generator().manual_seed(seed), 1, config.size)
    got: list[Any] = []
    decoder = cast(nn.Module, method.decoder)
    decoder.register_forward_pre_hook(lambda _, inputs: got.extend(inputs))
    result = method(images, mask)
    if isinstance(decoder, Decoder):  # a feature for each place
        grid = (got[0].shape[2], got[0].shape[3])
        places = torch.arange(grid[0] * grid[1]).unsqueeze(0)
    else:
        _, places, grid = got[:3]
    masked, scored = method.masked_images(images, mask), result.mask > 0
    samples = Samples(
        images, masked, result.target, result.prediction, scored, method.target, IMAGENET_MEAN, IMAGENET_STD
    )
    return Shown(config, method, samples, mask, places, grid)


def image_panel(shown: Shown, picture: Picture, caption: str) -> Panel:
    """The photo, or what is chosen of it; what is smaller than usual, in a square of the usual size."""
    side = shown.config.size[0]
    heading = f"image, {side}x{side}"
    if side >= USUAL:
        return Panel(picture, heading, caption)
    caption = f"{caption}\n(dashed: {USUAL}x{USUAL})".lstrip()
    return Panel(picture, heading, caption, around=round(USUAL * SCALE))


def encoder_box(label: str) -> Box:
    return Box("encoder", label, kept=True)


def decoded_panel(shown: Shown) -> Panel:
    """Where the decoder gets a feature, and where a mask token."""
    side = shown.photo.shape[0] // shown.grid[0]
    count, total = shown.have.sum(), shown.have.size
    tokens = f"{count} features (blue) and\n{total - count} mask tokens (orange)"
    picture = squares(shown.have, side, (BLUE, ACCENT))
    return Panel(picture, DECODED, EVERYWHERE if count == total else tokens)


def decoder_box(shown: Shown, kind: str = "") -> Box:
    depth = shown.config.decoder.depth
    label = f"{depth} {kind}block{'s' if depth > 1 else ''}" if depth else "linear"
    return Box("decoder", label, height=LINE * (2 + len(label.splitlines())))


def target_panel(shown: Shown, caption: str) -> Panel:
    """The target, faint where it is not scored."""
    kind, target, mask = shown.method.target, shown.samples.target[0], shown.samples.mask[0]
    if isinstance(kind, Hog):
        parts = [(torch.where(mask, 0, target), FAINT), (torch.where(mask, target, 0), INK)]
        layers = [(kind.draw(part, target, IMAGENET_MEAN, IMAGENET_STD), color) for part, color in parts]
        blank = np.ones_like(shown.photo)
        return Panel(blank, SCORED, caption, partial(draw_lines, layers=layers))
    return Panel(fade(shown.target, shrink(mask.numpy()) > 0.5), SCORED, caption)


def visible_patches(shown: Shown) -> list[Picture]:
    """Those that the encoder gets, one by one."""
    strip = take_blocks(_as_tensor(shown.photo), shown.places, shown.block)
    return [_as_picture(patch) for patch in strip.split(shown.block, dim=3)]


def compact(shown: Shown) -> tuple[Picture, Bools]:
    """UM-MAE's image of sampled patches, and which of them are masked, read from its mask as it does."""
    left_out, masked = shown.mask.unbind(1)
    quadrant = pairs(left_out).byte().argmin(dim=-1)
    picture = pick_of_pairs(_as_tensor(shown.photo), quadrant, shown.block)
    return _as_picture(picture), pairs(masked).any(dim=-1)[0].numpy()


def first_windows(shown: Shown) -> Groups:
    """The groups of windows in a pyramid's first block."""
    encoder = shown.method.encoder
    module: Any = find_windows(encoder.model)[0][0]
    side = shown.method.block // encoder.embedding.stride
    windows = Windows(shown.places, shown.grid)
    return windows.groups(side, tuple(module.window_size), tuple(module.shift_size))


def windows_outlined(shown: Shown) -> Picture:
    """The visible blocks; each window of a pyramid's first block has the colour of its group."""
    groups = first_windows(shown)
    count, size = groups.members_GS.shape
    first_GS = groups.together_GSS.byte().argmax(dim=2)  # a window is called by its first member's place
    window_K = (first_GS + size * torch.arange(count).view(-1, 1)).flatten()[groups.place_K]
    token = shown.method.encoder.embedding.stride
    strip = (1 + window_K).view(1, 1, shown.method.block // token, -1)
    window = enlarge(put_blocks(strip, shown.places, shown.grid)[0, 0].numpy(), round(token * SCALE))
    picture, border = shown.visible, outline(window)  # 0: nothing is there
    for one, color in enumerate(hues(count)):
        picture = paint(picture, border & ((window - 1) // size == one), color)
    return picture


def groups_as_bars(shown: Shown, token: int = 3, height: int = 8, gap: int = 2) -> Picture:
    """A bar a group, a piece a window: ``token`` pixels of the sheet for each of its tokens."""
    groups = first_windows(shown)
    count, size = groups.members_GS.shape
    filled = np.zeros(count * size, bool)
    filled[groups.place_K.numpy()] = True
    begins = groups.together_GSS.byte().argmax(dim=2).numpy() == np.arange(size)  # first of its window
    long = filled.reshape(count, size).repeat(token, axis=1)
    for step in range(gap):
        long[:, token + step :: token] &= ~begins[:, 1:]
    picture = np.ones((count, height + gap, size * token, 3))
    for bar, row, color in zip(picture, long, hues(count), strict=True):
        bar[:height] = paint(bar[:height], np.tile(row, (height, 1)), color)
    return picture.reshape(-1, size * token, 3)[:-gap]


def hues(count: int) -> list[str]:
    return [to_hex(hsv_to_rgb((number / count, 0.6, 0.85))) for number in range(count)]


def _as_tensor(picture: Picture) -> Tensor:
    """(1, 3, height, width)."""
    return torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0)


def _as_picture(images: Tensor) -> Picture:
    return images[0].permute(1, 2, 0).numpy()
