"""Steps of segmentation and detection on a simulated accelerator."""

import pytest
import torch

from fastmim.config import DetectConfig, SegmentConfig
from fastmim.config.detect import RcnnConfig
from fastmim.config.segment import SlidingConfig, UperNetConfig
from fastmim.data.annotations.masks import IGNORED
from fastmim.data.loading.dense import EvalImage
from fastmim.downstream.backbone import load_backbone
from fastmim.downstream.detection.model import DetectionModel, Objects
from fastmim.downstream.detection.prediction import DetectionPredictor
from fastmim.downstream.detection.rcnn import Detector
from fastmim.downstream.segmentation.evaluation import Predictor
from fastmim.downstream.segmentation.model import SegmentationModel
from fastmim.downstream.segmentation.uper_net import Segmenter
from fastmim.train.layer_decay import build_layered_adamw
from fastmim.train.optim import guarded_step
from fastmim.train.settings import OptimConfig
from simulated_device import watched

BACKBONES = [("resnet10t", {}), ("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 4, "num_heads": 2})]
SIDE, CLASSES = 64, 3


def segmenter(device, model, kwargs):
    torch.manual_seed(0)
    config = SegmentConfig(encoder="none", model=model, model_kwargs=kwargs, image_size=SIDE, drop_path=0.0)
    pyramid = load_backbone(config, None).pyramid
    head = UperNetConfig(channels=16, aux_channels=8, dropout=0.0)
    return SegmentationModel(Segmenter(pyramid, CLASSES, head), 0.9, 0.4).to(device).train()


def detector(device, model, kwargs):
    torch.manual_seed(0)
    config = DetectConfig(encoder="none", model=model, model_kwargs=kwargs, image_size=SIDE, drop_path=0.0)
    pyramid = load_backbone(config, None).pyramid
    head = RcnnConfig(channels=16, hidden=32, anchors=(8, 16, 32, 64, 128), regions=16)
    return DetectionModel(Detector(pyramid, CLASSES, head, True), 0.9).to(device).train()


def noise(count):
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def learn(learner, images, targets, steps=2):
    optimizer = build_layered_adamw(learner.model, 1.0, OptimConfig())
    losses = []
    with watched() as seen:
        for step in range(steps):
            torch.manual_seed(step)
            loss = learner(images, targets).loss
            loss.backward()
            guarded_step(optimizer, 1e-3, clip_norm=None)
            learner.after_step()
            losses.append(loss.detach())
    return [loss.cpu() for loss in losses], seen


@pytest.mark.parametrize(("model", "kwargs"), BACKBONES)
def test_a_step_of_segmentation_waits_for_nothing(device, model, kwargs):
    classes = torch.randint(0, CLASSES, (2, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    classes[:, :4] = IGNORED
    losses, seen = learn(segmenter(device, model, kwargs), noise(2).to(device), classes.to(device))
    assert [crossing for crossing in seen if crossing.waits or crossing.to_host] == []
    expected, _ = learn(segmenter("cpu", model, kwargs), noise(2), classes)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


def objects(device):
    boxes = torch.tensor([[4.0, 4, 30, 40], [20, 10, 60, 60]])
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    target = {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}
    return Objects([(SIDE, SIDE)], [{name: part.to(device) for name, part in target.items()}])


def test_a_step_of_detection_stays_on_its_device(device):
    """torchvision's parts wait for the number of proposals and positives; nothing else does."""
    losses, seen = learn(detector(device, *BACKBONES[0]), noise(1).to(device), objects(device), steps=1)
    ours = [crossing for crossing in seen if crossing.waits and "rcnn.py" not in crossing.place]
    assert ours == []
    assert torch.isfinite(torch.stack(losses)).all()
    expected, _ = learn(detector("cpu", *BACKBONES[0]), noise(1), objects("cpu"), steps=1)
    torch.testing.assert_close(losses[0], expected[0], rtol=1e-3, atol=1e-4)


def whole_image():
    pixels = torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator())
    return EvalImage(0, [pixels], (50, 50), {})


def test_whole_images_are_predicted_on_the_device(device):
    found = []
    for place in (device, "cpu"):
        statistics = (torch.full((3,), 0.5, device=place), torch.full((3,), 0.5, device=place))
        masks = segmenter(place, *BACKBONES[0]).best.eval()
        predictor = Predictor(masks, (SIDE, SIDE), SlidingConfig(), *statistics, 2)
        boxes = detector(place, *BACKBONES[0]).best.eval()
        boxes.heads.score_thresh = 0.0
        boxes.rpn._post_nms_top_n["testing"] = 50
        (objects_found,) = DetectionPredictor(boxes, (SIDE, SIDE), *statistics)([whole_image()])
        found.append((predictor(whole_image()).cpu(), torch.from_numpy(objects_found.scores)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
