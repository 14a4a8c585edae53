import pytest
import timm
import torch
from torch import nn

from fastmim.encoders.build import build_encoder
from fastmim.encoders.settings import EncoderConfig
from fastmim.errors import UsageError

SWIN = {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 4)}
WIDTHS = {"depths": (1, 1, 2, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4)}
PYRAMIDS = [("cmt_ti", {**WIDTHS, "stem_width": 8}, 32), ("pvt_tiny", WIDTHS, 32)]
# One small model of each kind that this package was first shown to pre-train.
FAMILIES = [
    ("vit_tiny_patch16_224", {"depth": 2}, 16),
    ("swin_tiny_patch4_window7_224", SWIN, 32),
    ("convnext_atto", {}, 32),
    ("convnextv2_atto", {}, 32),
    ("pvt_v2_b0", {}, 32),
    ("resnet10t", {}, 32),
]


@pytest.mark.parametrize(("name", "kwargs", "stride"), FAMILIES)
@pytest.mark.parametrize("size", [(128, 128), (64, 128)])
def test_features_have_the_size_that_stride_and_width_promise(name, kwargs, stride, size):
    encoder = build_encoder(name, size, model_kwargs=kwargs)
    assert encoder.stride == stride
    features = encoder(torch.randn(2, 3, *size))
    assert features.shape == (2, encoder.width, size[0] // stride, size[1] // stride)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize(("name", "kwargs", "stride"), FAMILIES)
def test_every_parameter_that_trains_gets_a_gradient(name, kwargs, stride):
    encoder = build_encoder(name, (64, 64), model_kwargs=kwargs)
    encoder(torch.randn(2, 3, 64, 64)).square().mean().backward()
    missing = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    frozen = {n for n, p in encoder.named_parameters() if not p.requires_grad}
    assert frozen <= {"model.pos_embed", "model.head.norm.weight", "model.head.norm.bias"}


@pytest.mark.parametrize(("name", "kwargs", "stride"), FAMILIES)
def test_name_and_arguments_rebuild_the_model_strictly(name, kwargs, stride):
    encoder = build_encoder(name, (64, 96), model_kwargs=kwargs)
    model = timm.create_model(encoder.model_name, **encoder.model_kwargs)
    model.load_state_dict(encoder.model.state_dict(), strict=True)


@pytest.mark.parametrize(("name", "kwargs", "stride"), FAMILIES)
@pytest.mark.parametrize("axis", [2, 3])
def test_features_keep_their_place_in_the_image(name, kwargs, stride, axis):
    torch.manual_seed(0)
    encoder = build_encoder(name, (128, 128), model_kwargs=kwargs).eval()
    images = torch.randn(4, 3, 128, 128)
    changed = images.clone()
    changed.narrow(axis, 96, 32).normal_()
    difference = (encoder(changed) - encoder(images)).abs().mean(dim=(0, 1)).mean(dim=3 - axis)
    near, far = difference.chunk(2)[::-1]
    assert near.mean() > far.mean()


def test_swin_takes_the_window_that_fits_the_size():
    built = build_encoder("swin_tiny_patch4_window7_224", (128, 128), model_kwargs=SWIN)
    assert built.model_kwargs["window_size"] == 4


def test_a_vit_gets_a_fixed_sine_cosine_position_embedding():
    fixed = build_encoder("vit_tiny_patch16_224", (64, 96), model_kwargs={"depth": 1})
    embedding = fixed.model.pos_embed
    assert not embedding.requires_grad
    assert embedding[0, 0].abs().max() == 0  # the class token has no place
    patches = embedding[0, 1:].view(4, 6, -1)
    along_rows = (patches == patches[:1]).all(0).all(0)  # channels that tell only the column
    along_columns = (patches == patches[:, :1]).all(0).all(0)
    assert int(along_rows.sum()) == int(along_columns.sum()) == patches.shape[2] // 2
    assert not (along_rows & along_columns).any()
    assert len(patches.flatten(0, 1).unique(dim=0)) == 24
    learned = build_encoder(
        "vit_tiny_patch16_224", (64, 96), model_kwargs={"depth": 1}, config=EncoderConfig("learned")
    )
    assert learned.model.pos_embed.requires_grad


def test_stochastic_depth_is_off():
    encoder = build_encoder("swin_tiny_patch4_window7_224", (64, 64), model_kwargs=SWIN)
    assert encoder.model_kwargs["drop_path_rate"] == 0.0
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(encoder.train()(images), encoder(images))


@pytest.mark.parametrize(
    ("name", "size", "kwargs", "part"),
    [
        ("vit_tiny_patch16_22", (128, 128), {}, "vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224", (100, 128), {}, "96 or 112"),
        ("resnet10t", (100, 100), {}, "96 or 128"),
        ("vit_tiny_patch16_224", (128, 128), {"embed": 3}, "embed"),
    ],
)
def test_what_cannot_work_is_said_with_what_would(name, size, kwargs, part):
    with pytest.raises(UsageError) as raised:
        build_encoder(name, size, model_kwargs=kwargs)
    assert part in str(raised.value)


@pytest.mark.parametrize(
    ("name", "kwargs", "size", "stride"),
    [
        ("vit_tiny_patch16_224", {"patch_size": 4, "depth": 1}, (32, 48), 4),
        ("convmixer_768_32", {}, (126, 98), 7),
        ("vit_tiny_patch16_224", {"patch_size": 14, "depth": 1}, (126, 98), 14),
        ("vit_tiny_patch16_224", {"patch_size": 28, "depth": 1}, (140, 112), 28),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}, (96, 160), 32),
    ],
)
def test_strides_and_shapes_of_all_kinds(name, kwargs, size, stride):
    encoder = build_encoder(name, size, model_kwargs=kwargs)
    assert encoder.stride == stride
    assert encoder(torch.randn(1, 3, *size)).shape[2:] == (size[0] // stride, size[1] // stride)


class Maps(nn.Module):
    """Feature maps of strides 7 and 28, as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 7, stride=7)
        self.body = nn.Conv2d(6, 10, 4, stride=4)

    def forward(self, images):
        stem = self.stem(images)
        return {"c2": stem, "c3": self.body(stem)}


def test_a_module_that_returns_several_maps_gives_the_last():
    encoder = build_encoder(Maps(), (84, 140))
    assert (encoder.stride, encoder.width) == (28, 10)
    assert encoder(torch.randn(2, 3, 84, 140)).shape == (2, 10, 3, 5)
    with pytest.raises(UsageError, match="84 or 112"):
        build_encoder(Maps(), (100, 100))


@pytest.mark.parametrize(("name", "kwargs", "stride"), [*FAMILIES, *PYRAMIDS])
def test_masking_in_the_embedding_hides_the_pixels_below(name, kwargs, stride):
    """With every token of a place replaced, the pixels there make no difference."""
    encoder = build_encoder(name, (64, 96), model_kwargs=kwargs).eval()
    embedding = encoder.embedding
    assert embedding.stride <= stride
    hidden = torch.zeros(embedding.grid, dtype=torch.bool)
    hidden[:, : embedding.grid[1] // 2] = True
    seen = []

    def replace(tokens):
        seen.append(tokens.shape)
        return tokens.masked_fill(hidden, 0.5)

    images = torch.randn(2, 3, 64, 96)
    changed = images.clone()
    changed[:, :, :, :32] = 0  # away from where kernels overlap
    torch.testing.assert_close(encoder(images, replace), encoder(changed, replace))
    assert seen[0] == (2, embedding.width, *embedding.grid)
    assert not torch.allclose(encoder(images), encoder(changed))


def test_settings_made_for_one_size_can_be_taken_to_another():
    small = build_encoder("swin_tiny_patch4_window7_224", (128, 128), model_kwargs=SWIN)
    large = build_encoder("swin_tiny_patch4_window7_224", (192, 192), model_kwargs=small.model_kwargs)
    assert large.model_kwargs["window_size"] == 6
