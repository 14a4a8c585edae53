"""One table of relative positions for all sizes, interpolated in each forward pass."""

import copy
import io
import shutil

import pytest
import timm
import torch
import torch.nn.functional as F

import fastmim
from conftest import TINY, same, weights
from fastmim.encoders.build import build_encoder
from fastmim.encoders.kept_tables import KEPT, with_own_tables
from fastmim.encoders.settings import EncoderConfig
from fastmim.errors import UsageError
from fastmim.train.checkpoint_folder import load_checkpoint
from fastmim.train.run_files import LAST

SWIN = {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 4)}
NAME = "swin_tiny_patch4_window7_224"
OURS = "relative_position_bias_table"


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    built = build_encoder(NAME, (128, 128), model_kwargs=SWIN, config=EncoderConfig(table_window=14)).eval()
    for name, parameter in built.model.named_parameters():
        if name.endswith(KEPT):
            parameter.data.normal_()  # so that it tells
    return built


def by_hand(encoder, size, tables):
    """Features of a plain model of that size with the tables, (729, heads), interpolated as they are here."""
    plain = build_encoder(NAME, size, model_kwargs=SWIN).eval()
    state = {name: value for name, value in encoder.model.named_parameters() if not name.endswith(KEPT)}
    for name, parameter in plain.model.named_parameters():
        if name.endswith(OURS):
            table = tables[name.replace(OURS, KEPT)]
            side = round(len(parameter) ** 0.5)
            grid = table.T.reshape(1, -1, 27, 27)
            state[name] = F.interpolate(grid, (side, side), mode="bicubic").flatten(2)[0].T
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    return images, torch.func.functional_call(plain.model, state, (images,))


def test_each_forward_pass_interpolates_the_one_table(encoder):
    tables = {name: p for name, p in encoder.model.named_parameters() if name.endswith(KEPT)}
    assert {len(table) for table in tables.values()} == {27 * 27}
    for size in ((128, 128), (192, 192), (160, 160), (224, 224)):  # from the same table, in any order
        resample = encoder.set_image_size(size)
        images, expected = by_hand(encoder, size, tables)
        torch.testing.assert_close(encoder.model(images), expected)
        means = {name: torch.ones_like(p) for name, p in encoder.model.named_parameters()}
        resampled = resample(means)
        assert all(torch.equal(resampled[name], mean) for name, mean in means.items())
        now = dict(encoder.model.named_parameters())
        assert all(now[name] is table for name, table in tables.items())


def test_the_table_gets_the_gradient_of_the_interpolated_one(encoder):
    tables = {name: p for name, p in encoder.model.named_parameters() if name.endswith(KEPT)}
    images, expected = by_hand(encoder, (128, 128), tables)
    wanted = torch.autograd.grad(expected.square().sum(), list(tables.values()))
    found = torch.autograd.grad(encoder.model(images).square().sum(), list(tables.values()))
    for ours, theirs in zip(found, wanted, strict=True):
        assert theirs.abs().sum() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_copies_and_pickles_are_of_the_same_kind(encoder):
    images = torch.randn(2, 3, 128, 128)
    file = io.BytesIO()
    torch.save(encoder.model, file)
    file.seek(0)
    for model in (copy.deepcopy(encoder.model), torch.load(file, weights_only=False)):
        assert torch.equal(model(images), encoder.model(images))
        assert any(name.endswith(KEPT) for name, _ in model.named_parameters())


def test_what_is_exported_has_tables_of_its_windows(encoder):
    images = torch.randn(2, 3, 128, 128)
    model = with_own_tables(encoder.model)
    assert torch.equal(model(images), encoder.model(images))
    fresh = timm.create_model(NAME, **encoder.model_kwargs)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert any(name.endswith(KEPT) for name, _ in encoder.model.named_parameters())  # as it was
    assert with_own_tables(fresh) is fresh


@pytest.mark.slow
def test_a_growing_run_keeps_its_table_and_resumes(photos, tmp_path):
    settings = TINY | {"model": NAME, "model_kwargs": SWIN, "image_size": None, "stages": "64x3s,96x3s"}
    settings |= {"encoder": {"table_window": 7}, "checkpoint_every_steps": 4, "keep_checkpoints": 3}
    whole = fastmim.pretrain(data=photos, out=tmp_path / "whole", **settings).run
    module = load_checkpoint(whole / LAST).module
    kept = [value for name, value in module.items() if name.endswith(KEPT)]
    assert {len(table) for table in kept} == {13 * 13}
    assert not any(name.endswith(KEPT) for name in weights(whole))
    assert fastmim.load_encoder(whole)(torch.randn(1, 3, 96, 96)) is not None
    shutil.copytree(whole, tmp_path / "run")
    (step,) = (tmp_path / "run" / "checkpoints").glob("step-*4.ckpt")
    step.replace(tmp_path / "run" / LAST)
    assert fastmim.pretrain(out=tmp_path / "run", resume=True, quiet=True).complete
    assert same(weights(tmp_path / "run"), weights(whole))


def test_what_has_no_tables_is_refused():
    with pytest.raises(
        UsageError, match=r"table_window = 14: vit_tiny_patch16_224 has no relative-position tables"
    ):
        build_encoder("vit_tiny_patch16_224", (64, 64), config=EncoderConfig(table_window=14))
    with pytest.raises(UsageError, match=r"table_window = 0 must be at least 1"):
        EncoderConfig(table_window=0)
