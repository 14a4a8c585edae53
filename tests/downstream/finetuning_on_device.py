"""A step of fine-tuning on a simulated accelerator: mixed images, layer decay, mean of the weights."""

import pytest
import timm
import torch

from fastmim.data.settings import AugmentConfig
from fastmim.data.transforms.augment import Mixing
from fastmim.downstream.classification.model import ClassificationModel
from fastmim.train.layer_decay import build_layered_adamw
from fastmim.train.optim import guarded_step
from fastmim.train.settings import OptimConfig
from simulated_device import watched

CLASSES = 5
MODELS = [
    ("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32}),
    ("convnext_atto", {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
    ("resnet10t", {}),
]
AUGMENTATIONS = [
    {},
    {"mixup": 0.0, "erase": 1.0},
    {"cutmix": 0.0, "erase": 0.0},
    {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0},
]


def learn(device, model, kwargs, augment, steps=2):
    """Some steps: the losses, what crossed in them, and the weights and their mean."""
    torch.manual_seed(0)
    learner = (
        ClassificationModel(timm.create_model(model, num_classes=CLASSES, **kwargs), ema=0.9)
        .to(device)
        .train()
    )
    optimizer = build_layered_adamw(learner.model, 0.75, OptimConfig())
    mix = Mixing(AugmentConfig(**augment), CLASSES)
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
    labels = torch.tensor([0, 1, 2, 3, 4]).to(device)
    losses = []
    with watched() as seen:
        for step in range(steps):
            torch.manual_seed(step)  # what is erased
            loss = learner(*mix(images, labels, (0, step))).loss
            loss.backward()
            guarded_step(optimizer, 1e-3, clip_norm=None)
            _take_in_weights(learner)
            losses.append(loss.detach())
    return losses, seen, learner


def _take_in_weights(learner):
    learner.after_step()


@pytest.mark.parametrize(
    ("model", "kwargs", "augment"),
    [(*model, AUGMENTATIONS[0]) for model in MODELS]
    + [(*MODELS[0], augment) for augment in AUGMENTATIONS[1:]],
)
def test_a_step_waits_for_nothing(device, model, kwargs, augment):
    losses, seen, learner = learn(device, model, kwargs, augment)
    assert [crossing for crossing in seen if crossing.waits or crossing.to_host] == []
    expected, _, on_cpu = learn("cpu", model, kwargs, augment)
    torch.testing.assert_close([loss.cpu() for loss in losses], expected, rtol=1e-4, atol=1e-5)
    assert {tensor.device for tensor in learner.best.state_dict().values()} == {device}
    assert on_cpu.steps == learner.steps == 2


def test_the_mean_of_the_weights_is_measured_on_the_device(device):
    *_, learner = learn(device, *MODELS[0], {})
    images = torch.rand(3, 3, 32, 32).to(device)
    with watched() as seen, torch.no_grad():
        scores = learner.best.eval()(images)
    assert seen == []
    assert not torch.equal(scores.cpu(), learner.model.eval()(images).cpu())
    state = learner.state_dict()
    again = ClassificationModel(
        timm.create_model(MODELS[0][0], num_classes=CLASSES, **MODELS[0][1]), ema=0.9
    ).to(device)
    again.load_state_dict(state)
    assert again.steps == 2
    assert torch.equal(again.best.eval()(images).cpu(), scores.cpu())
