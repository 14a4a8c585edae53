import json

import pytest
import timm
import torch

import fastmim
from conftest import TINY, batch, weights
from fastmim.config import merge
from fastmim.encoders.adapter import Encoder
from fastmim.errors import UsageError
from fastmim.mim.grids import pick_of_pairs
from fastmim.pretraining import build_method
from fastmim.recipes.methods import defaults_of

SIZE = (128, 192)
SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}
MODELS = [
    ("swin_tiny_patch4_window7_224", SWIN),
    ("pvt_v2_b0", {"depths": [1, 1, 1, 1]}),
    ("twins_svt_small", {"embed_dims": [16, 32, 64, 128], "num_heads": [1, 2, 4, 8], "depths": [1, 1, 1, 1]}),
    ("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}),
]


def small(model="swin_tiny_patch4_window7_224", model_kwargs=SWIN, **settings):
    torch.manual_seed(0)
    base = {"model": model, "model_kwargs": model_kwargs, "image_size": SIZE}
    decoder = {"decoder": {"depth": 1, "width": 64}}
    return build_method(merge(defaults_of("ummae"), {**base, **decoder, **settings}))


def pixels(mask, side=16):
    return mask.repeat_interleave(side, 1).repeat_interleave(side, 2).unsqueeze(1)


def test_one_of_four_is_sampled_and_a_quarter_of_these_masked():
    config = defaults_of("ummae")
    assert (config.image_size, config.mask.size, config.ummae.secondary_ratio) == (256, 16, 0.25)
    mask = small().draw_mask(torch.Generator().manual_seed(0), 400, (256, 256))
    assert mask.shape == (400, 2, 16, 16)
    left_out, masked = mask.unbind(1)
    assert ((~left_out).view(400, 8, 2, 8, 2).sum((2, 4)) == 1).all()
    assert not (left_out & masked).any()
    assert (masked.sum((1, 2)) == 16).all()  # of 64 that are sampled, a quarter
    assert (masked.float().mean(0) - 0.25 * 0.25).abs().max() < 0.08
    without = small(**{"ummae.secondary_ratio": 0.0}).draw_mask(torch.Generator(), 3, (256, 256))
    assert not without[:, 1].any()


def test_what_is_sampled_is_moved_together():
    images = torch.arange(16.0).view(1, 1, 4, 4)
    quadrant = torch.tensor([[[0, 1], [2, 3]]])
    assert pick_of_pairs(images, quadrant, 1).tolist() == [[[[0, 3], [12, 15]]]]
    large = images.repeat_interleave(3, 2).repeat_interleave(3, 3)
    compact = pick_of_pairs(large, quadrant, 3)
    assert torch.equal(compact[:, :, ::3, ::3], pick_of_pairs(images, quadrant, 1))


@pytest.mark.parametrize(("model", "kwargs"), MODELS)
def test_the_backbone_sees_a_quarter_and_only_what_is_visible(model, kwargs):
    network = small(model, kwargs).eval()
    seen = []
    network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images, mask = batch(network)
    result = network(images, mask)
    assert seen[0].shape == (2, 3, 64, 96)
    assert network.encoder.image_size == (64, 96)
    hidden = pixels(mask.any(dim=1))
    assert torch.isin(images[~hidden.expand_as(images)], seen[0]).all()
    assert torch.equal(result.mask, pixels(mask[:, 0]).squeeze(1))  # what was not sampled is scored, no more
    difference = ((result.prediction - result.target) ** 2).mean(1)
    assert torch.allclose(result.loss, difference[result.mask].mean())
    other = torch.where(hidden, torch.randn_like(images), images)
    if not model.startswith("pvt"):  # its overlapping patch embedding sees over their borders
        assert torch.equal(network(other, mask).prediction, result.prediction)


def test_a_sampled_patch_reaches_its_own_place_in_the_decoder():
    network = small(**{"mask.size": 32}).eval()
    images, mask = batch(network)
    got = []
    network.decoder.register_forward_pre_hook(lambda _, inputs: got.append(inputs))
    network(images, mask)
    tokens, places, grid = got[0]
    assert grid == (4, 6)
    quadrant, secondary = network._sampled(mask)
    sampled, masked = ~mask[:, 0].flatten(1), mask[:, 1].flatten(1)
    for sample in range(2):
        assert sorted(places[sample].tolist()) == sampled[sample].nonzero().flatten().tolist()
        assert torch.equal(masked[sample][places[sample]], secondary[sample].flatten())
    compact = pick_of_pairs(images, quadrant, 32)
    features = (
        network.encoder(compact, edit=lambda t: network._masked_tokens(secondary, t))
        .flatten(2)
        .transpose(1, 2)
    )
    assert torch.allclose(network.spread(features), tokens, atol=1e-6)


@pytest.mark.parametrize(("model", "kwargs"), MODELS)
@pytest.mark.parametrize("target", ["hog", "pixels-norm"])
def test_every_parameter_gets_a_gradient(model, kwargs, target):
    network = small(model, kwargs, **{"target.name": target})
    result = network(*batch(network))
    assert result.prediction.shape == result.target.shape
    result.loss.backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    assert network.mask_token.grad.abs().sum() > 0
    assert network.decoder.mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"mask.ratio": 0.5}, r"mask\.ratio = 0\.5: method = ummae does not use it"),
        ({"mask.size": 6}, r"mask\.size = 6: patches must be a multiple of the 4 pixels"),
        ({"mask.size": 64}, r"divide its stride of 32"),
        ({"image_size": 127}, "must be even"),
        ({"image_size": 224}, "method = ummae encodes 112x112 of 224x224 pixels"),
        ({"lomar.windows": 2}, r"lomar\.windows = 2: method = ummae does not use it"),
        ({"ummae.secondary_ratio": 1.0}, r"ummae\.secondary_ratio = 1\.0"),
    ],
)
def test_what_cannot_be_is_told(settings, part):
    with pytest.raises(UsageError, match=part):
        small(**settings)


def test_batch_norms_are_estimated_anew_at_the_encoders_size(photos, tmp_path):
    settings = {**TINY, "model": "resnet10t", "model_kwargs": {}, "image_size": 128, "method": "ummae"}
    settings |= {"decoder": {"depth": 1, "width": 32}, "steps": 1, "bn_recalibrate": True, "bn_images": 8}
    seen = []
    forward = Encoder.forward

    def noted(self, images, edit=None):
        seen.append(images.shape[2:])
        return forward(self, images, edit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "forward", noted)
        assert fastmim.pretrain(data=photos, out=tmp_path / "run", **settings).complete
    assert set(seen) == {(64, 64)}


def test_a_run_goes_through_stages_and_leaves_timms_weights(photos, tmp_path):
    run = tmp_path / "run"
    model = {"model": "swin_tiny_patch4_window7_224", "model_kwargs": SWIN, "method": "ummae"}
    settings = {**TINY, **model, "image_size": None, "stages": "128x1s,192x1s"}
    assert fastmim.pretrain(data=photos, out=run, **settings).complete
    origin = json.loads((run / "encoder.json").read_text())
    assert (origin["method"], origin["image_size"]) == ("ummae", [96, 96])
    timm.create_model(origin["model"], **origin["kwargs"]).load_state_dict(weights(run), strict=True)
    again = fastmim.pretrain(config=run / "config.yaml", out=tmp_path / "again", quiet=True)
    assert again.complete
    assert (run / "encoder.safetensors").read_bytes() == (tmp_path / "again/encoder.safetensors").read_bytes()
