import pytest
import torch

from conftest import batch
from fastmim.encoders.build import build_encoder
from fastmim.errors import UsageError
from fastmim.methods.masked.input_masking import InputMasking
from fastmim.mim.decoders import Decoder
from fastmim.mim.grids import mask_to_pixels
from fastmim.mim.settings import DecoderConfig, Masking, TargetConfig
from fastmim.mim.targets import build_target
from fastmim.pretraining.evaluation import HeldOut

SIZE = (64, 96)


def method(target="hog", masking=None, depth=1, model="vit_tiny_patch16_224", **settings):
    torch.manual_seed(0)
    kwargs = {"embed_dim": 32, "depth": 2, "num_heads": 2} if model.startswith("vit") else {}
    encoder = build_encoder(model, SIZE, model_kwargs=kwargs)
    config = TargetConfig(name=target, **settings)
    return InputMasking(
        encoder, build_target(config, encoder.stride), masking or Masking(), DecoderConfig(depth, 32), "l2"
    )


@pytest.mark.parametrize("target", ["hog", "pixels", "pixels-norm", "hog+pixels", "hog+pixels-norm"])
@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "resnet10t"])
def test_prediction_target_and_mask_share_a_grid(target, model):
    network = method(target, model=model)
    result = network(*batch(network))
    cell = network.target.cell
    assert result.prediction.shape == result.target.shape
    assert result.target.shape[2:] == result.mask.shape[1:] == (SIZE[0] // cell, SIZE[1] // cell)
    assert result.loss.dtype == torch.float32
    assert torch.isfinite(result.loss)


@pytest.mark.parametrize("token", ["learned", "zeros"])
def test_masked_pixels_reach_the_encoder_only_as_the_token(token):
    network = method(masking=Masking(token=token)).eval()
    images, mask = batch(network)
    hidden = mask_to_pixels(mask, network.block, SIZE).unsqueeze(1)
    seen = network.masked_images(images, mask)
    assert torch.equal(seen.masked_select(~hidden), images.masked_select(~hidden))
    assert torch.equal(seen.masked_select(hidden), network.mask_token.expand_as(images).masked_select(hidden))
    other = torch.where(hidden, torch.randn_like(images), images)
    assert torch.equal(network(images, mask).prediction, network(other, mask).prediction)


class OneBlock(InputMasking):
    """Hides all blocks but one."""

    def draw_mask(self, generator, batch, size):
        mask = super().draw_mask(generator, batch, size)
        mask[:] = True
        mask[:, 0, 0] = False
        return mask

    def masked_blocks(self, blocks):
        return blocks - 1


class Varying(OneBlock):
    """Hides all blocks but one or two."""

    def draw_mask(self, generator, batch, size):
        mask = super().draw_mask(generator, batch, size)
        mask[::2, 0, 1] = False
        return mask

    def masked_blocks(self, blocks):
        return None


@pytest.mark.parametrize("kind", [InputMasking, OneBlock, Varying])
def test_predicting_the_masked_tokens_alone_changes_no_loss(kind, monkeypatch):
    monkeypatch.setattr(Decoder, "choosing_pays", True)
    network = method()
    network.__class__ = kind
    images, mask = batch(network)
    chosen = network.train()(images, mask).loss
    assert torch.allclose(chosen, network.eval()(images, mask).loss, rtol=1e-5)
    drawn = network.draw_mask(torch.Generator().manual_seed(1), 8, SIZE).flatten(1).sum(1)
    blocks = network.masked_blocks(mask[0].numel())
    assert set(drawn.tolist()) == {blocks} if blocks is not None else len(set(drawn.tolist())) > 1


def test_every_parameter_gets_a_gradient():
    network = method()
    network(*batch(network)).loss.backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    assert network.mask_token.grad.abs().sum() > 0


def test_the_decoder_sees_the_class_token_and_predicts_none_for_it():
    """As in the released code: its blocks attend to the class token, which is cut off before predicting."""
    network = method().eval()
    images, mask = batch(network)
    encoder, decoder = network.encoder, network.decoder
    with torch.no_grad():
        tokens = encoder.model.forward_features(network.masked_images(images, mask))
        h, w = encoder.grid
        assert tokens.shape[1] == 1 + h * w
        seen = decoder.norm(decoder.blocks(decoder.embed(tokens)))[:, 1:]
        wanted = decoder.predict(seen).transpose(1, 2).unflatten(2, (h, w))
        prefix = tokens[:, :1]
        features = tokens[:, 1:].transpose(1, 2).unflatten(2, (h, w))
        torch.testing.assert_close(decoder(features, None, prefix), wanted)
        assert not torch.allclose(decoder(features), wanted, atol=1e-4)
        found = encoder.with_prefix(network.masked_images(images, mask))
        torch.testing.assert_close(found[0], features)
        torch.testing.assert_close(found[1], prefix)


def test_backbones_without_a_class_token_have_no_prefix():
    network = method(model="resnet10t").eval()
    assert network.encoder.with_prefix(torch.zeros(1, 3, *SIZE))[1] is None


@pytest.mark.parametrize("size", [8, 16, 32, 64])
@pytest.mark.parametrize("ratio", [0.5, 0.85])
def test_mask_sizes_below_and_above_the_stride(size, ratio):
    network = method(masking=Masking(size=size, ratio=ratio))
    assert torch.isfinite(network(*batch(network)).loss)


def test_depth_zero_is_norm_and_linear_at_the_encoders_width():
    decoder = method(depth=0).decoder
    assert sorted(name for name, _ in decoder.named_parameters()) == [
        "norm.bias",
        "norm.weight",
        "predict.bias",
        "predict.weight",
    ]
    assert decoder.norm.normalized_shape == (32,)


def test_a_mask_that_hides_no_whole_cell_is_refused():
    with pytest.raises(UsageError, match=r"target\.cell"):
        method(masking=Masking(size=1, ratio=0.01))


@pytest.mark.slow
def test_learning_beats_the_constant_baseline_on_what_it_has_seen():
    torch.manual_seed(0)
    network = method(depth=0)
    images, mask = batch(network, 4)
    held_out = HeldOut(network, images, mask, 2, lambda: torch.autocast("cpu", enabled=False))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        network(images, mask).loss.backward()
        optimizer.step()
    assert held_out.loss() < 0.8 * held_out.baseline


def test_the_held_out_loss_does_not_depend_on_the_micro_batch():
    network = method()
    images, mask = batch(network, 5)
    losses = [
        HeldOut(network, images, mask, size, lambda: torch.autocast("cpu", enabled=False)).loss()
        for size in (1, 2, 5)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert network.training


@pytest.mark.parametrize("size", [16, 32])
def test_in_training_only_what_the_loss_needs_is_predicted(size):
    network = method("pixels", Masking(size=size))
    seen = []
    network.decoder.predict.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    some, whole = network.train()(*batch(network)), network.eval()(*batch(network))
    hidden = (network.draw_mask(torch.Generator(), 1, SIZE)).sum() * (size // network.encoder.stride) ** 2
    assert seen == [hidden, 24]
    torch.testing.assert_close(some.loss, whole.loss)
    scored = some.mask.unsqueeze(1).expand_as(some.prediction)
    torch.testing.assert_close(some.prediction[scored], whole.prediction[scored])
    assert not some.prediction[~scored].any()


@pytest.mark.parametrize(("target", "size"), [("pixels", 8), ("pixels", 48)])
def test_all_is_predicted_where_tokens_are_partly_hidden(target, size):
    network = method(target, Masking(size=size)).train()
    seen = []
    network.decoder.predict.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    network(*batch(network))
    assert seen == [24]


def test_choosing_pays_where_a_token_emits_much():
    wide = DecoderConfig(1, 256)
    assert not Decoder(wide, 32, 108).choosing_pays
    assert Decoder(wide, 32, 768).choosing_pays
