import pytest
import timm
import torch
from timm.models import get_model_input_config
from timm.optim import param_groups_layer_decay

import fastmim.encoders.architectures.cmt
import fastmim.encoders.architectures.pvt  # noqa: F401
from conftest import mostly_slow
from fastmim.encoders.architectures.tables import ReducedAttention, resample

DIMS = {"embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4), "depths": (1, 1, 2, 1)}
NARROW = {"cmt_s": {**DIMS, "stem_width": 8, "head_width": 40}, "pvt_small": DIMS}
each_kind = pytest.mark.parametrize("name", NARROW)


def narrow(name, **changes):
    torch.manual_seed(0)
    return timm.create_model(name, **{"img_size": 64, "num_classes": 5, **NARROW[name], **changes})


def images(*size, batch=2, channels=3):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def parameters(name, **kwargs):
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "size", "millions"),
    [
        # Each CMT at its image size in the paper: the tables grow with it.
        ("cmt_ti", 160, 9.5),
        ("cmt_xs", 192, 15.2),
        ("cmt_b", 256, 45.7),
        ("cmt_b", 224, 45.7),
        ("pvt_tiny", 224, 13.2),
        ("pvt_small", 224, 24.5),
        ("pvt_medium", 224, 44.2),
        ("pvt_large", 224, 61.4),
    ],
)
def test_parameters_are_those_of_the_paper(name, size, millions):
    assert parameters(name, img_size=size) == pytest.approx(millions * 1e6, rel=0.01)


def test_the_count_that_the_paper_gives_for_cmt_s_is_that_of_a_narrower_head():
    """By its table 1, projection of 1280 channels included, CMT-S has 26.3 M parameters; it says 25.1 M."""
    assert parameters("cmt_s") == pytest.approx(25.1e6, rel=0.002)
    assert parameters("cmt_s", head_width=1280) == pytest.approx(26.26e6, rel=0.001)


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        timm.list_models(["cmt_*", "pvt_tiny", "pvt_small", "pvt_medium", "pvt_large"]),
        ["cmt_ti", "cmt_xs", "pvt_tiny", "pvt_small"],
    ),
)
def test_every_published_model_classifies(name):
    with torch.device("meta"):
        model = timm.create_model(name, img_size=128)
        assert model(torch.zeros(2, 3, 128, 128)).shape == (2, 1000)


def test_eight_models_are_registered():
    ours = [f"cmt_{size}" for size in ("ti", "xs", "s", "b")]
    ours += [f"pvt_{size}" for size in ("tiny", "small", "medium", "large")]
    assert all(timm.is_model(name) for name in ours)
    assert timm.list_pretrained("cmt_*") == []


@each_kind
@pytest.mark.parametrize("size", [224, 128, (64, 96)])
def test_classification_runs_on_numbers(name, size):
    model = narrow(name, img_size=size).eval()
    sides = size if isinstance(size, tuple) else (size, size)
    logits = model(images(*sides))
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()


@each_kind
def test_features_are_what_the_attributes_say(name):
    model = narrow(name)
    features = model.forward_features(images(64, 96))
    if name == "cmt_s":
        assert features.shape == (2, model.num_features, 2, 3)
        assert model.num_prefix_tokens == 0
    else:
        assert features.shape == (2, model.num_prefix_tokens + 2 * 3, model.num_features)
        assert model.num_prefix_tokens == 1
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)


@each_kind
def test_features_only_gives_the_four_strides(name):
    model = narrow(name, features_only=True).eval()
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert model.feature_info.channels() == [8, 16, 24, 32]
    maps = model(images(64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 24, 4, 6), (2, 32, 2, 3)]
    parts = narrow(name, features_only=True, out_indices=(1, 2))
    torch.testing.assert_close(parts.eval()(images(64, 96)), model(images(64, 96))[1:3])
    sum(m.square().mean() for m in parts.train()(images(64, 64))).backward()
    assert [n for n, p in parts.named_parameters() if p.grad is None] == []


@each_kind
def test_intermediates_end_in_the_features(name):
    model = narrow(name).eval()
    features, maps = model.forward_intermediates(images(64, 64), indices=2, norm=True)
    torch.testing.assert_close(features, model.forward_features(images(64, 64)))
    assert len(maps) == 2
    last = features if name == "cmt_s" else features[:, 1:].transpose(1, 2).reshape(2, 32, 2, 2)
    torch.testing.assert_close(maps[-1], last)
    only = model.forward_intermediates(images(64, 64), indices=[0], stop_early=True, intermediates_only=True)
    assert [m.shape[1] for m in only] == [8]


@each_kind
def test_every_parameter_gets_a_gradient(name):
    model = narrow(name)
    torch.nn.functional.cross_entropy(model(images(64, 64)), torch.tensor([0, 1])).backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


@each_kind
def test_setting_the_same_size_changes_nothing(name):
    model = narrow(name).eval()
    before, tables = model(images(64, 64)), dict(model.named_parameters())
    model.set_input_size(64)
    assert all(tables[n] is p for n, p in model.named_parameters())
    torch.testing.assert_close(model(images(64, 64)), before, rtol=0, atol=0)


@each_kind
def test_another_size_is_resampled_alike_in_passing_and_for_good(name):
    model = narrow(name).eval()
    in_passing = model(images(160, 96))
    model.set_input_size((160, 96))
    assert {tuple(p.shape) for n, p in model.named_parameters() if n == "stages.0.table"} == {
        (1, 40, 24, 5, 3) if name == "cmt_s" else (1, 8, 40, 24)
    }
    assert get_model_input_config(model)["input_size"] == (3, 160, 96)
    torch.testing.assert_close(model(images(160, 96)), in_passing)


@each_kind
def test_weights_of_224_load_at_128_after_resizing(name):
    large, small = narrow(name, img_size=224).eval(), narrow(name, img_size=128).eval()
    large.set_input_size(128)
    assert all(p.requires_grad for p in large.parameters())
    small.load_state_dict(large.state_dict())
    torch.testing.assert_close(small(images(128, 128)), large(images(128, 128)))


@each_kind
def test_resizing_works_without_memory(name):
    with torch.device("meta"):
        model = narrow(name)
        model.set_input_size((96, 64))
        assert model(images(96, 64)).shape == (2, 5)
    built = narrow(name, img_size=(96, 64))
    assert {n: p.shape for n, p in model.state_dict().items()} == {
        n: p.shape for n, p in built.state_dict().items()
    }


def test_a_smooth_bias_stays_what_it_is_at_another_size():
    """A bias that says how far right of its key a query lies says so on the finer grid too."""
    stage = narrow("cmt_s", img_size=256).stages[0]
    middle = [(torch.arange(n) + 0.5) / n for n in (64, 8)]
    ramp = (middle[0][:, None] - middle[1][None]).reshape(1, 1, 64, 1, 8)
    stage.table.data = ramp.expand(1, 64, 64, 8, 8).contiguous()
    stage.set_grid((32, 32))
    fewer = [(torch.arange(n) + 0.5) / n for n in (32, 4)]
    wanted = (fewer[0][:, None] - fewer[1][None]).reshape(1, 1, 32, 1, 4).expand(1, 32, 32, 4, 4)
    inner = (slice(None), slice(None), slice(4, -4), slice(None), slice(1, -1))  # borders have no beyond
    torch.testing.assert_close(stage.table[inner], wanted[inner], atol=0.02, rtol=0)


def test_attention_adds_the_bias_to_scaled_products():
    torch.manual_seed(0)
    attention = ReducedAttention(8, 2, torch.nn.AvgPool2d(2))
    tokens, bias = torch.randn(1, 16, 8), torch.randn(2, 16, 4)
    reduced = tokens.reshape(1, 2, 2, 2, 2, 8).mean(dim=(2, 4)).reshape(1, 4, 8)
    q = attention.q(tokens).reshape(1, 16, 2, 4)
    k, v = attention.kv(reduced).reshape(1, 4, 2, 2, 4).unbind(2)
    weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) / 2 + bias).softmax(-1)
    wanted = attention.proj(torch.einsum("bhnm,bmhd->bnhd", weights, v).reshape(1, 16, 8))
    torch.testing.assert_close(attention(tokens, (4, 4), bias), wanted)


def test_resampling_keeps_what_is_even():
    torch.testing.assert_close(resample(torch.full((2, 3, 7, 7), 1.5), (4, 5)), torch.full((2, 3, 4, 5), 1.5))


@each_kind
def test_the_last_stage_may_have_no_blocks(name):
    model = narrow(name, depths=(1, 1, 1, 0))
    assert model(images(64, 64)).shape == (2, 5)
    assert not any(n.startswith("stages.3.blocks") for n, _ in model.named_parameters())
    model.set_input_size((96, 64))
    assert model(images(96, 64)).shape == (2, 5)
    if name == "cmt_s":
        model(images(96, 64)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


@each_kind
def test_depth_does_not_blow_up_what_a_new_model_gives(name):
    _, maps = narrow(name, depths=(1, 1, 20, 1)).forward_intermediates(images(64, 64))
    assert all(0.1 < m.std() < 10 for m in maps)


@each_kind
def test_other_numbers_of_channels(name):
    assert narrow(name, in_chans=13)(images(64, 64, channels=13)).shape == (2, 5)


@each_kind
def test_a_model_without_classifier_gives_pooled_features_and_can_get_one(name):
    model = narrow(name, num_classes=0)
    assert not any(n.startswith(("head", "project")) for n, _ in model.named_parameters())
    assert model(images(64, 64)).shape == (2, model.num_features) == (2, model.head_hidden_size)
    model.reset_classifier(7)
    assert model(images(64, 64)).shape == (2, 7)
    assert model.get_classifier().out_features == 7
    model.reset_classifier(3, "avg")
    assert model(images(64, 64)).shape == (2, 3)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model.eval()(images(64, 64)), model.forward_features(images(64, 64)))


@each_kind
def test_layers_are_in_their_order_for_layer_wise_rates(name):
    model = narrow(name)
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay()
    )
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    named = {n: scales[id(p)] for n, p in model.named_parameters()}
    order = [
        "stem.0.weight",
        "stages.0.blocks.0.norm1.weight",
        "stages.1.table",
        "stages.2.blocks.0.norm1.bias",
    ]
    order += ["stages.2.blocks.1.norm1.bias", "stages.3.downsample.0.weight", "head.weight"]
    assert [named[n] for n in order] == [0.5**k for k in (6, 5, 4, 3, 2, 1, 0)]
    undecayed = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert all(id(p) in undecayed for n, p in model.named_parameters() if "table" in n or "cls_token" in n)


@each_kind
def test_checkpointing_changes_no_gradient(name):
    gradients = []
    for enable in (False, True):
        model = narrow(name)
        model.set_grad_checkpointing(enable)
        model(images(64, 64)).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


@each_kind
@pytest.mark.parametrize(
    ("kwargs", "part"),
    [
        ({"img_size": 100}, "multiples of 32"),
        ({"global_pool": "max"}, "global_pool"),
        ({"depths": (1, 1)}, "depths 2"),
        ({"num_heads": (1, 2, 5, 4)}, "5 heads"),
    ],
)
def test_what_cannot_be_built_is_said(name, kwargs, part):
    with pytest.raises(ValueError, match=part):
        narrow(name, **kwargs)


@each_kind
def test_images_of_an_odd_size_are_refused(name):
    with pytest.raises(ValueError, match="100x64"):
        narrow(name)(images(100, 64))


@each_kind
def test_half_precision(name):
    with torch.autocast("cpu", torch.bfloat16):
        loss = narrow(name, drop_path_rate=0.1, drop_rate=0.1)(images(64, 64)).float().sum()
    loss.backward()
    assert loss.isfinite()
