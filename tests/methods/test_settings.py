"""SimMIM and MaskFeat as settings of one class, and what `--method` brings."""

import pytest
import torch
import yaml

import fastmim
from conftest import TINY, batch
from fastmim.cli.entry import main
from fastmim.config import PretrainConfig, merge
from fastmim.errors import UsageError
from fastmim.methods.registry import METHODS
from fastmim.methods.settings import unused_settings
from fastmim.mim.grids import mask_to_pixels
from fastmim.mim.losses import masked_loss
from fastmim.pretraining import build_method
from fastmim.recipes import base_config
from fastmim.recipes.methods import DEFAULTS, defaults_of

SMALL_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}


def small(method, **settings):
    torch.manual_seed(0)
    base = {"model": "vit_tiny_patch16_224", "model_kwargs": SMALL_VIT, "image_size": 64}
    return build_method(merge(defaults_of(method), {**base, **settings})).eval()


def test_every_method_has_a_name_defaults_and_settings_that_exist():
    assert list(DEFAULTS) == list(METHODS)
    for name in METHODS:
        config = defaults_of(name)
        assert config.method == name
        for path in unused_settings(name):
            group, _, setting = path.partition(".")
            assert hasattr(getattr(config, group), setting or "__dict__")


def test_simmim_has_its_papers_settings():
    config = defaults_of("simmim")
    assert (config.mask.ratio, config.mask.size, config.mask.place) == (0.6, 32, "patch")
    assert (config.target.name, config.target.loss, config.decoder.depth) == ("pixels", "l1", 0)
    network = small("simmim", image_size=192)
    mask = network.draw_mask(torch.Generator().manual_seed(0), 3, (192, 192))
    assert mask.shape == (3, 6, 6)
    assert (mask.sum((1, 2)) == 22).all()  # ceil(36 * 0.6)


@pytest.mark.parametrize(
    ("model", "kwargs"),
    [
        ("vit_tiny_patch16_224", SMALL_VIT),
        ("swin_tiny_patch4_window7_224", SMALL_SWIN),
        ("resnet10t", {}),
    ],
)
def test_simmims_loss_is_the_mean_of_absolute_differences_of_masked_pixels(model, kwargs):
    network = small("simmim", model=model, model_kwargs=kwargs)
    images, mask = batch(network)
    result = network(images, mask)
    pixels = mask_to_pixels(mask, 32, (64, 64)).unsqueeze(1).expand_as(images)
    expected = (result.prediction - images).abs()[pixels].mean()
    assert torch.allclose(result.loss, expected)
    assert torch.equal(result.mask, pixels[:, 0])
    # Neither what is hidden reaches the encoder, nor what is visible the loss.
    hidden = torch.where(pixels, torch.randn_like(images), images)
    if model.startswith(("vit", "swin")):  # a convolution's stem sees over the border of its token
        assert torch.equal(network(hidden, mask).prediction, result.prediction)
    unknown = torch.where(pixels, result.prediction, float("nan"))
    again = masked_loss("l1", unknown, result.target, result.mask)
    assert torch.equal(again, result.loss)


def test_maskfeat_predicts_hog_in_rectangles():
    config = defaults_of("maskfeat")
    assert (config.mask.ratio, config.mask.pattern, config.image_size) == (0.4, "blockwise", 224)
    network = small("maskfeat", image_size=224)
    mask = network.draw_mask(torch.Generator().manual_seed(0), 4, (224, 224))
    assert mask.shape == (4, 14, 14)
    assert (mask.sum((1, 2)) == 78).all()  # int(196 * 0.4), as released
    result = network(*batch(network, size=(224, 224)))
    assert result.target.shape == (2, 27, 28, 28)


@pytest.mark.parametrize("method", ["simmim", "maskfeat"])
def test_every_parameter_gets_a_gradient(method):
    network = small(method)
    network(*batch(network)).loss.backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    assert network.mask_token.grad.abs().sum() > 0


def test_a_method_brings_its_settings_and_what_is_given_wins(photos, tmp_path):
    small = {
        key: TINY[key] for key in ("model", "model_kwargs", "image_size", "quiet", "batch_size", "kernels")
    }
    run = tmp_path / "run"
    settings = {**small, "held_out": 4, "workers": 0, "steps": 1, "mask": {"ratio": 0.5, "size": 16}}
    fastmim.pretrain(data=photos, out=run, method="simmim", **settings)
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert (stored["method"], stored["mask"]["ratio"], stored["mask"]["place"]) == ("simmim", 0.5, "patch")
    assert stored["target"]["loss"] == "l1"
    again = base_config(PretrainConfig, run / "config.yaml", None, None)
    assert again == base_config(PretrainConfig, run / "config.yaml", None, None, "simmim")
    fastmim.pretrain(config=run / "config.yaml", out=tmp_path / "again", quiet=True)
    first, second = ((tmp_path / name / "encoder.safetensors").read_bytes() for name in ("run", "again"))
    assert first == second
    with pytest.raises(UsageError, match="method = 'fastmim' differs from the 'simmim'"):
        fastmim.pretrain(out=run, resume=True, method="fastmim", quiet=True)


def test_a_file_that_names_its_method_gets_its_defaults_and_flags_win(photos, tmp_path):
    (tmp_path / "mine.yaml").write_text("method: simmim\nmask: {ratio: 0.7}\n")
    config = base_config(PretrainConfig, tmp_path / "mine.yaml", None, None)
    assert (config.mask.ratio, config.mask.size, config.target.loss) == (0.7, 32, "l1")
    flags = "--target.loss l2 --image-size 32 --mask.size 16 --steps 1 --workers 0 --batch-size 4"
    command = ["pretrain", "--config", str(tmp_path / "mine.yaml"), "--data", str(photos)]
    kwargs = [
        "--model",
        "vit_tiny_patch16_224",
        "--model-kwargs",
        '{"embed_dim": 32, "depth": 1, "num_heads": 2}',
    ]
    assert main([*command, "--out", str(tmp_path / "run"), *flags.split(), *kwargs]) == 0
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (stored["mask"]["ratio"], stored["target"]["loss"]) == (0.7, "l2")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--method simmmim", "simmmim"),
        ("--method simmim --recipe table3/fastmim-vit-b-400", "is for fastmim; leave one"),
        ("--method simmim --config {tmp}/file.yaml", "is for maskfeat; leave one"),
    ],
)
def test_two_methods_at_once_are_refused(flags, part, tmp_path, capsys):
    (tmp_path / "file.yaml").write_text("method: maskfeat\n")
    command = ["pretrain", "--data", "demo:photos", "--out", str(tmp_path / "run")]
    assert main([*command, *flags.format(tmp=tmp_path).split()]) == 2
    assert part in capsys.readouterr().err
