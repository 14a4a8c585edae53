"""Distillation: features beside a frozen teacher's, by one pass of the student."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import mostly_slow
from fastmim.config import PretrainConfig, merge
from fastmim.encoders.adapter import Encoder
from fastmim.encoders.build import build_encoder
from fastmim.errors import UsageError
from fastmim.methods.distillation import Distilled, pairs_of
from fastmim.methods.frozen_teacher import Statistics, Teacher
from fastmim.methods.masked.input_masking import InputMasking
from fastmim.methods.settings import DistillConfig
from fastmim.mim.grids import shrink_map
from fastmim.mim.settings import DecoderConfig, Masking, TargetConfig
from fastmim.mim.targets import build_target
from fastmim.recipes.methods import defaults_of

SIZE = (64, 64)
VIT = ("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 4, "num_heads": 2})
SWIN = ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]})
CONVNEXT = ("convnext_atto", {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]})
RESNET = ("resnet10t", {})
PVT = ("pvt_v2_b0", {"embed_dims": [16, 32, 40, 64], "depths": [1, 1, 1, 1]})
CMT = ("cmt_s", {"stem_width": 8, "embed_dims": [16, 32, 64, 128], "depths": [1, 1, 2, 1]})
GREY = Statistics((0.5,) * 3, (0.5,) * 3)


def encoder_of(model, size=SIZE, seed=0):
    torch.manual_seed(seed)
    return build_encoder(model[0], size, model_kwargs=model[1])


def method_of(encoder, **masking):
    target = build_target(TargetConfig(), encoder.stride)
    return InputMasking(encoder, target, Masking(**masking), DecoderConfig(1, 32), "l2")


def both(student, teacher, pairs=None, own=GREY, teacher_size=SIZE, **settings):
    """A small method and its teacher, which has weights of its own."""
    encoder, other = encoder_of(student), encoder_of(teacher, teacher_size, seed=1)
    chosen = pairs_of(DistillConfig("x", layers=pairs or ()), len(encoder.layers), len(other.layers))
    grids = [encoder.layers[pair.student].grid for pair in chosen]
    teach = Teacher(other, GREY, own, [pair.teacher for pair in chosen], grids, "digest")
    widths = [width for width, _, _ in teach.shapes]
    learner = Distilled(method_of(encoder), [pair.student for pair in chosen], widths, **settings)
    return learner, teach


def batch(learner, count=2):
    images = torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    return images, learner.method.draw_mask(torch.Generator().manual_seed(2), count, SIZE)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("model", [VIT, SWIN, CONVNEXT], ids=lambda model: model[0])
def test_no_distance_from_itself(model, normalize):
    """The student is the teacher, sees the whole image, and is projected by the identity."""
    learner, _ = both(model, model, normalize=normalize)
    learner.eval()
    encoder = learner.method.encoder
    teach = Teacher(
        copy.deepcopy(encoder),
        GREY,
        GREY,
        learner.student_layers,
        [encoder.layers[layer].grid for layer in learner.student_layers],
        "digest",
    )
    for project in learner.project:
        nn.init.dirac_(project.weight)
        nn.init.zeros_(project.bias)
    images, mask = batch(learner)
    teacher_features = teach(images)
    apart = learner(images, mask, *teacher_features)
    alike = learner(images, torch.zeros_like(mask), *teacher_features)
    assert alike.distillation < 2e-3  # half precision
    assert apart.distillation > 20 * alike.distillation
    assert apart.loss == apart.reconstruction.loss + apart.distillation


@pytest.mark.parametrize(
    ("student", "teacher"),
    mostly_slow(
        [(VIT, SWIN), (SWIN, VIT), (VIT, CONVNEXT), (RESNET, VIT), (PVT, PVT), (CMT, RESNET)],
        [(VIT, SWIN), (RESNET, VIT), (CMT, RESNET)],
    ),
    ids=lambda model: model[0],
)
def test_any_pair_of_families_and_only_the_student_learns(student, teacher):
    learner, teach = both(student, teacher)
    before = copy.deepcopy(teach.state_dict())
    images, mask = batch(learner)
    teacher_features = teach(images)
    assert [tuple(lesson.shape[1:]) for lesson in teacher_features] == teach.shapes
    assert [tuple(b.shape) for b in teach.blank(2)] == [tuple(lesson.shape) for lesson in teacher_features]
    assert all(lesson.dtype == torch.half for lesson in teacher_features)
    result = learner(images, mask, *teacher_features)
    result.loss.backward()
    missing = [name for name, p in learner.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(p.grad.abs().sum() > 0 for p in learner.project.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in teach.parameters())
    teach.train()
    assert not any(module.training for module in teach.modules())
    teach(images)
    assert all(torch.equal(value, before[name]) for name, value in teach.state_dict().items())


def test_the_student_goes_through_its_backbone_once():
    learner, teach = both(VIT, VIT)
    images, mask = batch(learner)
    teacher_features, seen = teach(images), []
    learner.method.encoder.model.patch_embed.register_forward_hook(lambda *_: seen.append(1))
    learner(images, mask, *teacher_features)
    assert len(seen) == 1


@pytest.mark.parametrize("place", ["image", "patch"])
@pytest.mark.parametrize(
    "model",
    [VIT, SWIN, CONVNEXT, *(pytest.param(model, marks=pytest.mark.slow) for model in (RESNET, PVT, CMT))],
    ids=lambda model: model[0],
)
def test_predictions_are_those_without_a_teacher(model, place):
    encoder = encoder_of(model)
    network = method_of(encoder, place=place).eval()
    images = torch.randn(2, 3, *SIZE)
    mask = network.draw_mask(torch.Generator(), 2, SIZE)
    alone = network(images, mask)
    encoder.check_keeping()
    wanted = [len(encoder.layers) - 1, 0]
    with encoder.capture(wanted) as kept:
        beside = network(images, mask)
    torch.testing.assert_close(beside.prediction, alone.prediction, rtol=1e-4, atol=1e-5)
    assert [tuple(map_.shape[1:]) for map_ in kept.maps] == [
        (encoder.layers[layer].width, *encoder.layers[layer].grid) for layer in wanted
    ]


def test_a_module_of_ones_own_has_one_layer():
    module = nn.Sequential(nn.Conv2d(3, 16, 16, 16), nn.GELU(), nn.Conv2d(16, 16, 1))
    encoder = Encoder(module, "mine", {}, SIZE, 3)
    assert encoder.layers == ((16, (4, 4)),)
    images = torch.randn(1, 3, *SIZE)
    encoder.check_keeping()
    with encoder.capture([0]) as kept:
        features = encoder(images)
    assert torch.equal(kept.maps[0], features)
    assert torch.equal(encoder.forward_layers(images, [0])[0], features)


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        (12, 24, ["2:5", "5:11", "8:17", "11:23"]),
        (4, 4, ["0:0", "1:1", "2:2", "3:3"]),
        (12, 4, ["2:0", "5:1", "8:2", "11:3"]),
        (5, 24, ["1:5", "2:11", "3:17", "4:23"]),
        (1, 12, ["0:11"]),
    ],
)
def test_by_default_the_ends_of_equal_parts_are_compared(student, teacher, pairs):
    assert list(map(str, pairs_of(DistillConfig(), student, teacher))) == pairs


def test_a_layer_may_have_two_teachers():
    learner, teach = both(VIT, VIT, ("3:1", "3:3", "0:0"))
    images, mask = batch(learner)
    result = learner(images, mask, *teach(images))
    assert len(teach.shapes) == 3
    assert torch.isfinite(result.loss)


def test_the_teacher_sees_its_own_normalisation_and_size():
    own = Statistics((0.1, 0.4, 0.7), (0.2, 0.3, 0.4))
    _, teach = both(VIT, VIT, own=own, teacher_size=(96, 96))
    pixels = torch.rand(2, 3, *SIZE)
    seen = []
    teach.encoder.model.patch_embed.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    teach((pixels - 0.5) / 0.5)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in own)
    wanted = F.interpolate((pixels - mean) / std, (96, 96), mode="bicubic", antialias=True)
    torch.testing.assert_close(seen[-1], wanted, rtol=1e-4, atol=1e-4)


def test_lessons_are_finite_in_half_precision():
    learner, teach = both(VIT, VIT)
    with torch.no_grad():
        teach.encoder.model.blocks[-1].mlp.fc2.bias.fill_(1e6)
    teacher_features = teach(batch(learner)[0])
    assert all(torch.isfinite(lesson).all() for lesson in teacher_features)


def test_scale_matters_to_the_papers_distance_only():
    for normalize, same in ((False, False), (True, True)):
        learner, teach = both(VIT, VIT, normalize=normalize)
        learner.eval()
        images, mask = batch(learner)
        teacher_features = [lesson.float() for lesson in teach(images)]
        once = learner(images, mask, *teacher_features).distillation
        more = learner(images, mask, *[10 * lesson for lesson in teacher_features]).distillation
        assert torch.allclose(once, more, rtol=1e-2) == same


@pytest.mark.parametrize(("old", "new"), [((8, 8), (4, 4)), ((12, 8), (3, 8)), ((7, 9), (3, 4))])
def test_shrinking_is_the_mean_over_areas(old, new):
    features = torch.randn(2, 3, *old)
    shrunk = shrink_map(features, new)
    assert shrunk.shape == (2, 3, *new)
    assert torch.allclose(shrunk.mean((2, 3)), features.mean((2, 3)), atol=1e-6)
    if old[0] % new[0] == 0 == old[1] % new[1]:
        torch.testing.assert_close(shrunk, F.adaptive_avg_pool2d(features, new))


def test_half_precision_gives_a_finite_loss():
    learner, teach = both(VIT, SWIN)
    images, mask = batch(learner)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = learner(images, mask, *teach(images))
    assert result.loss.dtype == torch.float32
    result.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters() if p.grad is not None)


@pytest.mark.parametrize("method", ["mae", "lomar", "ummae", "greenmim", "fcmae"])
def test_methods_that_do_not_see_every_place_are_refused(method):
    with pytest.raises(UsageError, match=f"method = {method} .* these do: fastmim, simmim, maskfeat"):
        merge(defaults_of(method), {"distill.teacher": "runs/x"})


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"layers": ["2:5"]}, "distill.teacher is missing"),
        ({"teacher": "x", "layers": [125]}, "distill.layers"),
        ({"teacher": "x", "layers": ["2-5"]}, "distill.layers = 2-5"),
        ({"teacher": "x", "weight": 0}, "distill.weight = 0"),
        ({"teacher": "x", "size": 1}, "distill.size = 1"),
        ({"teacher": "x", "weights": 1}, "did you mean distill.weight?"),
    ],
)
def test_a_wrong_setting_is_named(settings, part):
    with pytest.raises(UsageError) as raised:
        merge(PretrainConfig(), {"distill": settings})
    assert part in str(raised.value)
    assert "\n" not in str(raised.value)


def test_pairs_may_be_written_in_several_ways():
    ways = [("2:5", "11:23"), [[2, 5], [11, 23]], "2:5 11:23", "2:5,11:23"]
    found = [merge(PretrainConfig(), {"distill": {"teacher": "x", "layers": way}}).distill for way in ways]
    assert all(config.layers == ways[0] for config in found)


@pytest.mark.parametrize(
    ("pair", "part"), [("4:0", "student has layers 0 to 3"), ("0:9", "teacher has layers")]
)
def test_a_layer_that_is_not_there_is_named(pair, part):
    with pytest.raises(UsageError, match=part):
        pairs_of(DistillConfig("x", layers=(pair,)), 4, 4)
