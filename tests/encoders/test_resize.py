"""One run, several sizes: tables are resampled, everything else is kept."""

import pytest
import torch
import torch.nn.functional as F

from fastmim.encoders.build import build_encoder
from fastmim.errors import UsageError

SWIN = {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 4)}
TABLE = "relative_position_bias_table"
GROWING = [
    ("vit_tiny_patch16_224", {"depth": 2}),  # sets its size itself
    ("swin_tiny_patch4_window7_224", SWIN),
    ("beit_base_patch16_224", {"depth": 1, "embed_dim": 48, "num_heads": 3}),
    ("resnet10t", {}),  # takes any size
    ("pvt_tiny", {"embed_dims": (16, 32, 40, 64)}),
    pytest.param("mixer_s32_224", {}, marks=pytest.mark.slow),  # is rebuilt, as the next
    pytest.param("gcvit_xxtiny", {}, marks=pytest.mark.slow),  # tables of offsets in a window
    pytest.param("mvitv2_tiny", {}, marks=pytest.mark.slow),  # tables of offsets along a side
    ("cait_xxs24_224", {"depth": 1, "depth_token_only": 1}),
]


@pytest.mark.parametrize(("name", "kwargs"), GROWING)
def test_a_grown_encoder_is_one_of_that_size(name, kwargs):
    encoder = build_encoder(name, (64, 64), model_kwargs=kwargs).eval()
    before = {key: value.clone() for key, value in encoder.model.named_parameters()}
    trained = {key for key, value in encoder.model.named_parameters() if value.requires_grad}
    size = (128, 128) if name in ("gcvit_xxtiny", "mvitv2_tiny") else (96, 128)
    resample = encoder.set_image_size(size)
    features = encoder(torch.randn(2, 3, *size))
    assert features.shape == (2, encoder.width, size[0] // encoder.stride, size[1] // encoder.stride)
    fresh = build_encoder(name, size, model_kwargs=kwargs)
    after = dict(encoder.model.named_parameters())
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in fresh.model.named_parameters()}
    assert encoder.model_kwargs == fresh.model_kwargs
    fresh.model.load_state_dict(encoder.model.state_dict(), strict=True)
    assert {key for key, value in after.items() if value.requires_grad} == trained
    same = [key for key in before if before[key].shape == after[key].shape]
    assert all(torch.equal(before[key], after[key]) for key in same)
    # What belongs to the parameters goes the same way as they did.
    carried = resample(before)
    assert all(torch.equal(carried[key], after[key]) for key in before)


def test_a_size_that_cannot_be_is_told():
    encoder = build_encoder("vit_tiny_patch16_224", (64, 64), model_kwargs={"depth": 1})
    with pytest.raises(UsageError, match="100x100"):
        encoder.set_image_size((100, 100))


def test_bias_tables_at_a_stage_change_agree_with_interpolation_in_the_forward_pass():
    """Paper, A.3.2: one table that is interpolated (bicubic) in the forward pass for each resolution."""
    torch.manual_seed(0)
    encoder = build_encoder("swin_tiny_patch4_window7_224", (128, 128), model_kwargs=SWIN).eval()
    tables = {k: v.detach().normal_() for k, v in encoder.model.named_parameters() if k.endswith(TABLE)}
    small = {key: value.clone() for key, value in tables.items()}
    encoder.set_image_size((192, 192))
    assert encoder.model_kwargs["window_size"] == 6

    def interpolated(table):  # (49, heads) -> (121, heads)
        grid = table.T.reshape(1, -1, 7, 7)
        return F.interpolate(grid, (11, 11), mode="bicubic").flatten(2)[0].T

    images = torch.randn(2, 3, 192, 192)
    in_the_pass = torch.func.functional_call(
        encoder.model,
        {key: interpolated(table) if len(table) == 49 else table for key, table in small.items()},
        (images,),
    )
    sizes = {len(table) for table in small.values()}
    assert 49 in sizes
    torch.testing.assert_close(encoder.model(images), in_the_pass)


def test_a_constant_table_stays_constant():
    encoder = build_encoder("swin_tiny_patch4_window7_224", (128, 128), model_kwargs=SWIN)
    for key, value in encoder.model.named_parameters():
        if key.endswith(TABLE):
            value.data.fill_(0.25)
    encoder.set_image_size((224, 224))
    for key, value in encoder.model.named_parameters():
        if key.endswith(TABLE):
            torch.testing.assert_close(value, torch.full_like(value, 0.25))
