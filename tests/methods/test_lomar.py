import pytest
import torch

import fastmim
from conftest import TINY, batch
from fastmim.config import merge
from fastmim.errors import UsageError
from fastmim.methods.base import trivial_loss
from fastmim.pretraining import build_method
from fastmim.recipes.methods import defaults_of

SIZE = (128, 160)
SMALL = {
    "model": "vit_tiny_patch16_224",
    "model_kwargs": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "image_size": SIZE,
}


def small(**settings):
    torch.manual_seed(0)
    return build_method(merge(defaults_of("lomar"), {**SMALL, **settings}))


def test_windows_have_the_papers_shape_and_count():
    config = defaults_of("lomar")
    assert (config.mask.ratio, config.lomar.windows, config.lomar.window) == (0.8, 4, 7)
    mask = small(image_size=224).draw_mask(torch.Generator().manual_seed(0), 50, (224, 224))
    assert mask.shape == (50, 4, 2, 14, 14)
    within, hidden = mask.unbind(2)
    assert (within.sum((2, 3)) == 49).all()
    assert (within.any(2).sum(2) == 7).all()  # squares
    assert (within.any(3).sum(2) == 7).all()
    assert (hidden.sum((2, 3)) == 39).all()  # int(49 * 0.8), as released
    for axis in (3, 2):  # no two windows of an image begin in the same row, nor in the same column
        first = within.any(axis).int().argmax(2)
        assert all(len(set(row)) == 4 for row in first.tolist())
    assert not (hidden & ~within).any()
    assert within.flatten(0, 1).any(0).all()  # everywhere
    assert not torch.equal(within[0], within[1])


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_a_window_is_encoded_as_if_there_were_nothing_else(model):
    size = (140, 112) if "14" in model else SIZE
    network = small(model=model, image_size=size).eval()
    images, mask = batch(network, size=size)
    side = size[0] // mask.shape[3]
    result = network(images, mask)
    within, hidden = (part.any(1) for part in mask.unbind(2))
    spread = lambda m: m.repeat_interleave(side, 1).repeat_interleave(side, 2).unsqueeze(1)  # noqa: E731
    shown = (mask[:, :, 0] & ~mask[:, :, 1]).any(1)
    other = torch.where(spread(shown), images, torch.randn_like(images))
    assert torch.allclose(network(other, mask).prediction, result.prediction, atol=1e-6)
    assert torch.equal(network.masked_images(other, mask), network.masked_images(images, mask))
    assert torch.equal(result.mask > 0, spread(hidden).squeeze(1))
    assert not (result.mask[~spread(within).squeeze(1)]).any()
    # What one window shows has no influence on the others: alone, it is reconstructed in the same way.
    network.config = type(network.config)(windows=1, window=7)
    alone = [network(images, mask[:, number : number + 1]) for number in range(4)]
    assert torch.allclose(result.loss, torch.stack([one.loss for one in alone]).mean(), atol=1e-5)
    total = sum(one.prediction * (one.mask > 0).unsqueeze(1) for one in alone)
    counts = sum(one.mask for one in alone)
    assert torch.equal(counts, result.mask)
    assert torch.allclose(total / counts.clamp(min=1).unsqueeze(1), result.prediction, atol=1e-5)


def test_a_patch_that_one_window_masks_and_another_shows_is_seen_by_that_other_only():
    network = small(**{"lomar.windows": 2}).eval()
    mask = torch.zeros(1, 2, 2, 8, 10, dtype=torch.bool)
    mask[:, :, 0, :7, :7] = True
    mask[:, 0, 1, 0, 0] = True
    mask[:, 1, 1, 6, 6] = True
    images = torch.randn(1, 3, *SIZE)
    result = network(images, mask)
    changed = images.clone()
    changed[:, :, :16, :16] += 1  # masked in the first, visible in the second
    again = network(changed, mask)
    assert torch.equal(again.prediction[..., :16, :16], result.prediction[..., :16, :16])
    assert not torch.equal(again.prediction[..., 96:112, 96:112], result.prediction[..., 96:112, 96:112])


def test_blocks_see_windows_only():
    network = small()
    seen = []
    network.encoder.model.blocks.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    network(*batch(network))
    assert seen == [(2 * 4, 1 + 49, 32)]


@pytest.mark.parametrize("target", ["hog", "pixels", "pixels-norm", "hog+pixels"])
def test_every_parameter_gets_a_gradient_for_every_target(target):
    network = small(**{"target.name": target})
    result = network(*batch(network))
    assert result.prediction.shape == result.target.shape
    assert result.mask.shape[1:] == result.target.shape[2:]
    result.loss.backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    assert network.mask_token.grad.abs().sum() > 0


def test_the_constant_baseline_is_scored_like_the_windows():
    network = small(**{"target.name": "hog"}).eval()
    images, mask = batch(network)
    with torch.no_grad():
        result = network(images, mask)
        hidden = result.mask.unsqueeze(1)
        mean = (result.target * hidden).sum((0, 2, 3)) / hidden.sum()
        network.decoder.predict.weight.zero_()
        network.decoder.predict.bias.copy_(mean.repeat_interleave(4))
        constant = network(images, mask)
    assert float(constant.loss) == pytest.approx(trivial_loss(network, constant), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"image_size": 96}, r"lomar\.window = 7"),
        ({"mask.pattern": "blockwise"}, r"mask\.pattern = 'blockwise': method = lomar does not use it"),
        ({"ummae.secondary_ratio": 0.5}, r"ummae\.secondary_ratio = 0\.5: method = lomar does not"),
        ({"model": "resnet10t", "model_kwargs": {}}, "cannot leave patches out"),
        ({"lomar.windows": 0}, r"lomar\.windows = 0"),
        ({"target.name": "hog", "target.cell": 32}, r"target\.cell = 32"),
    ],
)
def test_what_cannot_be_is_told(settings, part):
    with pytest.raises(UsageError, match=part):
        small(**settings)


def test_a_run_has_samples_and_goes_through_stages(photos, tmp_path):
    settings = {**TINY, "image_size": None, "stages": "112x1s,128x1s", "method": "lomar"}
    result = fastmim.pretrain(data=photos, out=tmp_path / "run", **settings)
    assert result.complete
    assert (tmp_path / "run" / "samples.png").is_file()
