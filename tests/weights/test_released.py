"""Checkpoints under the keys of MAE, SimMIM and FastMIM give timm models with the same outputs.

The released keys are spelt here by plain replacements, from timm's to theirs.
"""

import argparse
import pathlib
import re

import pytest
import timm
import torch

from fastmim.errors import UsageError
from fastmim.weights.load import load_encoder
from fastmim.weights.released import import_released, read_released, read_torch_file

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN = {"embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2]}
PVT = {"depths": [1, 2, 1, 1], "embed_dims": [8, 16, 16, 16], "num_heads": [1, 1, 2, 2]}


def built(name, **kwargs):
    """A timm model in which no tensor is constant."""
    torch.manual_seed(1)
    model = timm.create_model(name, **{"num_classes": 0, **kwargs}).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def decoder(width, mask_token):
    names = (
        "decoder_embed.weight",
        "decoder_blocks.0.attn.qkv.bias",
        "decoder_norm.weight",
        "decoder_pred.bias",
    )
    return {"mask_token": torch.zeros(mask_token), **{name: torch.zeros(width) for name in names}}


def mae(model):
    extra = {"decoder_pos_embed": torch.zeros(1, 5, 8)}
    return {**model.state_dict(), **extra, **decoder(8, (1, 1, 8))}


def their_swin(model):
    """Swin with its buffers; stage i ends with the merging that timm's stage i + 1 begins with."""
    state = {}
    for key, value in model.state_dict().items():
        if "downsample" in key:
            _, stage, rest = key.split(".", 2)
            key = f"layers.{int(stage) - 1}.{rest}"
        state[f"encoder.{key}"] = value
        if key.endswith("relative_position_bias_table"):
            state["encoder." + key.replace("bias_table", "index")] = torch.zeros(16, 16, dtype=torch.long)
    state["encoder.layers.0.blocks.1.attn_mask"] = torch.zeros(16, 16, 16)  # 64 pixels: 16 windows of 4x4
    return state


def their_pvt(model):
    state = {}
    for key, value in model.state_dict().items():
        key = key.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")
        key = re.sub(r"^patch_embed\.", "patch_embed1.", key)
        for stage in range(4):
            key = key.replace(f"stages.{stage}.downsample.", f"patch_embed{stage + 1}.")
            key = key.replace(f"stages.{stage}.blocks.", f"block{stage + 1}.")
            key = key.replace(f"stages.{stage}.norm.", f"norm{stage + 1}.")
        state[f"encoder.{key}"] = value
    return state


def saved(folder, state, **beside):
    file = folder / "released.pth"
    torch.save({"model": state, **beside}, file)
    return file


def same_outputs(model, folder, size):
    images = torch.randn(2, 3, size, size)
    loaded = load_encoder(folder).eval()
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), model(images), rtol=1e-5, atol=1e-6)
        assert loaded(images).std() > 0


def test_mae(tmp_path):
    model = built("vit_base_patch16_224", img_size=32, **VIT)
    file = saved(tmp_path, mae(model), args=argparse.Namespace(epochs=800, betas=(0.9, 0.95)), epoch=799)
    imported = import_released(file, "mae", "vit_base_patch16_224", tmp_path / "out", VIT)
    assert len(imported.unexpected_keys) == 6
    assert "mask_token" in imported.unexpected_keys
    assert imported.missing_keys == []
    same_outputs(model, tmp_path / "out", 32)  # its size is that of its position embedding
    origin, state, *_ = read_released(file, "mae", "vit_base_patch16_224", VIT)
    assert (origin["method"], origin["target"], origin["image_size"]) == ("mae", "pixels", [32, 32])
    assert origin["released"] == "released.pth"
    assert state.keys() == model.state_dict().keys()


def test_mae_after_fine_tuning(tmp_path):
    model = built("vit_base_patch16_224", img_size=32, num_classes=5, global_pool="avg", **VIT)
    file = saved(tmp_path, model.state_dict())
    import_released(file, "mae", "vit_base_patch16_224", tmp_path / "out", VIT)
    same_outputs(model, tmp_path / "out", 32)


def test_a_classifier_that_the_file_has_not_is_named(tmp_path, caplog):
    model = built("vit_base_patch16_224", img_size=32, **VIT)
    file = saved(tmp_path, mae(model))
    kwargs = {**VIT, "num_classes": 3}
    imported = import_released(file, "mae", "vit_base_patch16_224", tmp_path / "out", kwargs)
    assert imported.missing_keys == ["head.weight", "head.bias"]
    released = read_released(file, "mae", "vit_base_patch16_224", kwargs)
    assert released.state["head.weight"].shape == (3, 32)
    load_encoder(f"mae:{file}", model="vit_base_patch16_224", num_classes=3, model_kwargs=VIT)
    assert "newly initialised in vit_base_patch16_224: head" in caplog.text


@pytest.mark.parametrize("layout", ["simmim", "fastmim"])
def test_swin(tmp_path, layout):
    model = built("swin_tiny_patch4_window7_224", img_size=64, window_size=4, **SWIN)
    rest = {
        "simmim": {"encoder.mask_token": torch.zeros(1, 1, 16), "decoder.0.weight": torch.zeros(8, 32, 1, 1)},
        "fastmim": decoder(8, (1, 3, 1, 1)),
    }
    file = saved(tmp_path, {**their_swin(model), **rest[layout]})
    imported = import_released(file, layout, "swin_tiny_patch4_window7_224", tmp_path / "out", SWIN)
    assert "encoder.layers.0.blocks.1.attn_mask" in imported.unexpected_keys
    assert set(rest[layout]) < set(imported.unexpected_keys)
    same_outputs(model, tmp_path / "out", 64)  # window and size are those of its buffers


def test_swin_after_fine_tuning(tmp_path):
    name = "swin_tiny_patch4_window7_224"
    model = built(name, img_size=64, window_size=4, num_classes=3, **SWIN)
    state = {key.removeprefix("encoder."): value for key, value in their_swin(model).items()}
    state = {key.replace("head.fc.", "head."): value for key, value in state.items()}
    file = saved(tmp_path, state)
    assert import_released(file, "simmim", name, tmp_path / "out", SWIN).missing_keys == []
    same_outputs(model, tmp_path / "out", 64)


def test_no_table_is_resampled(tmp_path):
    name = "swin_tiny_patch4_window7_224"
    file = saved(tmp_path, their_swin(built(name, img_size=64, window_size=4, **SWIN)))
    with pytest.raises(UsageError, match=r"of another shape: \S+relative_position_bias_table 49x\d instead"):
        read_released(file, "simmim", name, {**SWIN, "window_size": 8})


@pytest.mark.parametrize("shared", [True, False])
def test_simmim_vit(tmp_path, shared):
    kwargs = {**VIT, "img_size": 48}
    own = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "global_pool": "token"}
    model = built("beit_base_patch16_224", **kwargs, **own)
    state = {f"encoder.{key}": value for key, value in model.state_dict().items()}
    state["encoder.rel_pos_bias.relative_position_index"] = torch.zeros(10, 10, dtype=torch.long)
    state["encoder.mask_token"] = torch.zeros(1, 1, 32)
    file = saved(tmp_path, state)
    given = {**kwargs, **own} if shared else kwargs  # timm's own has a table a block
    import_released(file, "simmim", "beit_base_patch16_224", tmp_path / "out", given)
    same_outputs(model, tmp_path / "out", 48)


def test_fastmim_vit_needs_its_number_of_heads(tmp_path):
    model = built("vit_base_patch16_224", img_size=32, embed_dim=48, depth=2, num_heads=6)
    file = saved(tmp_path, {**model.state_dict(), **decoder(8, (1, 3, 1, 1))})
    name, kwargs = "vit_base_patch16_224", {"embed_dim": 48, "depth": 2}
    with pytest.raises(UsageError, match=r"6 heads .*'num_heads': 6"):
        read_released(file, "fastmim", name, kwargs)
    origin, *_ = read_released(file, "fastmim", name, {**kwargs, "num_heads": 6})
    assert origin["kwargs"]["num_heads"] == 6
    assert origin["target"] == "hog"
    import_released(file, "fastmim", name, tmp_path / "out", {**kwargs, "num_heads": 6})
    same_outputs(model, tmp_path / "out", 32)


def test_fastmim_pvt(tmp_path):
    model = built("pvt_v2_b0", **PVT)
    file = saved(tmp_path, {**their_pvt(model), **decoder(8, (1, 3, 1, 1))})
    import_released(file, "fastmim", "pvt_v2_b0", tmp_path / "out", PVT)
    same_outputs(model, tmp_path / "out", 224)


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s, "teacher.weight": torch.zeros(2)}, r"unknown keys for ViT: teacher\.weight$"),
        (
            lambda s: {**s, "blocks.2.norm1.bias": torch.zeros(32)},
            r"the model has no blocks\.2\.norm1\.bias$",
        ),
        (lambda s: without(s, "blocks.1.attn.qkv.bias"), r"it has no blocks\.1\.attn\.qkv\.bias$"),
        (lambda s: {**s, "norm.weight": torch.zeros(7)}, r"shape: norm\.weight 7 instead of 32$"),
        (lambda s: {k: v for k, v in s.items() if "blocks.1" not in k}, r"it has no .* and 8 more$"),
        (lambda s: {**s, "head.weight": torch.zeros(4, 32)}, r"it has no head\.bias$"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(tmp_path, change, message):
    file = saved(tmp_path, change(mae(built("vit_base_patch16_224", img_size=32, **VIT))))
    with pytest.raises(UsageError, match=message) as error:
        import_released(file, "mae", "vit_base_patch16_224", tmp_path / "out", VIT)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_checkpoints(tmp_path):
    read = lambda file: read_released(file, "mae", "vit_base_patch16_224", VIT)  # noqa: E731
    with pytest.raises(UsageError, match="is not a file"):
        read(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(UsageError, match=r"text\.pth was not written by torch\.save"):
        read(tmp_path / "text.pth")
    with pytest.raises(UsageError, match="no weights"):
        read(saved(tmp_path, {"epoch": 3}))
    with pytest.raises(UsageError, match=r"pathlib\.\w+.*could run code"):
        read(saved(tmp_path, {}, config=pathlib.PurePosixPath("a")))
    with pytest.raises(UsageError, match="layout = 'dino'"):
        read_released(saved(tmp_path, {}), "dino", "vit_base_patch16_224")


def test_other_files_are_one_line_whatever_they_hold(tmp_path):
    file = tmp_path / "x.pth"
    for content in (
        b"",
        b"hello\n",
        b"hi\n",
        b"{}",
        b"\x80\x02}q\x00.",
        *(bytes([n, n]) for n in range(256)),
    ):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=r"x\.pth (was not written by torch\.save|contains)"):
            read_torch_file(file)
