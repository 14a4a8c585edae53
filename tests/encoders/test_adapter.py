import pytest
import timm
import torch

from fastmim.encoders.adapter import EncoderConfig, build_encoder
from fastmim.errors import UsageError

# One small model of each kind that this package was first shown to pre-train.
FAMILIES = [
    ("vit_tiny_patch16_224", {"depth": 2}, 16),
    (
        "swin_tiny_patch4_window7_224",
        {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 4)},
        32,
    ),
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
    assert build_encoder("swin_tiny_patch4_window7_224", (128, 128)).model_kwargs["window_size"] == 4


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
    encoder = build_encoder("swin_tiny_patch4_window7_224", (64, 64))
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
