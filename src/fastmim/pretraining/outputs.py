"""Lines printed when a pre-training run starts, and files written when it ends."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from fastmim.config import PretrainConfig, to_yaml
from fastmim.data.loading.train_loader import TrainLoader
from fastmim.data.loading.unreadable import SKIPPED
from fastmim.encoders.kept_tables import with_own_tables
from fastmim.encoders.registry import weights_tag
from fastmim.methods.base import Method
from fastmim.pretraining.build import Network
from fastmim.pretraining.evaluation import HeldOut
from fastmim.pretraining.report import Outcome, RunDescription, write_report
from fastmim.system.size import Size
from fastmim.train.checkpoint import Choices
from fastmim.train.distributed import hardware
from fastmim.train.optim import scaled_lr
from fastmim.train.run_files import REPORT
from fastmim.train.stages import Stage, TrainingPlan
from fastmim.weights.batchnorm import batch_norms, recalibrated
from fastmim.weights.encoder_file import describe_encoder, save_encoder
from fastmim.weights.spec import WEIGHTS, parse_weights


def summary(config: PretrainConfig, network: Network, plan: TrainingPlan, held_out: int) -> Iterator[str]:
    """Yield lines about the model, its teacher and the data for the start of a run."""
    method, teacher_setup = network.method, network.teacher_setup
    height, width = method.image_size
    h, w = _grid(method)
    parameters = sum(p.numel() for p in method.encoder.parameters()) / 1e6
    yield (
        f"{config.method} of {config.model}: {parameters:.1f} M parameters, stride {method.encoder.stride}, "
        f"{h}x{w} tokens of width {method.encoder.width} at {height}x{width} pixels"
    )
    if parse_weights(config.weights).has_weights:
        yield f"training starts from the weights of {config.weights}"
    elif tag := weights_tag(config.model):
        yield (f"weights are random, not timm's {tag}; --weights timm:{config.model} starts from those")
    if teacher_setup is not None:
        teacher = teacher_setup.teacher.encoder
        parameters = sum(p.numel() for p in teacher.parameters()) / 1e6
        height, width = teacher.image_size
        yield (
            f"teacher {config.distill.teacher}: {teacher.model_name}, {parameters:.1f} M parameters, at "
            f"{height}x{width} pixels; layers {' '.join(map(str, teacher_setup.pairs))}"
        )
    yield f"{config.data}: {plan.images} images to train on, {held_out} held out"


def kernels_line(
    fabric: Fabric, config: PretrainConfig, method: Method, plan: TrainingPlan, stage: Stage, choices: Choices
) -> Iterator[str]:
    """Yield one or two lines about a stage's batch, precision, kernels and learning rate."""
    height, width = stage.image_size
    h, w = _grid(method)
    batch = (
        f"batch {stage.batch_size} as {fabric.world_size} x {choices.micro_batch} "
        f"on {fabric.device.type} in {choices.precision}, {choices.kernels}"
    )
    lr = scaled_lr(config.optim.base_lr, stage.batch_size)
    if stage.number:
        yield f"{_stage(plan, stage)}: {h}x{w} tokens at {height}x{width} pixels; {batch}; peak lr {lr:.3g}"
    else:
        yield f"{batch}; peak lr {lr:.3g}, {plan.total_steps} steps"
    if len(plan.stages) > 1 and not stage.number:
        yield f"{_stage(plan, stage)}: {stage.last_step} steps at {height}x{width} pixels"


def _grid(method: Method) -> Size:
    h, w = (side // method.encoder.stride for side in method.encoder.image_size)
    return h, w


def _stage(plan: TrainingPlan, stage: Stage) -> str:
    return f"stage {stage.number + 1} of {len(plan.stages)}"


class Trained(NamedTuple):
    """The trained network, with the training and held-out images of the last stage."""

    network: Network
    loader: TrainLoader
    stage: Stage
    held_out: HeldOut


def write_outputs(
    fabric: Fabric,
    config: PretrainConfig,
    trained: Trained,
    outcome: Outcome,
    complete: bool,
    say: Callable[[str], None],
) -> None:
    """Write the encoder, the sample sheet and the report; print a line for each and the verdict."""
    run = Path(config.out)
    encoder, teacher_setup = trained.network.method.encoder, trained.network.teacher_setup
    origin = describe_encoder(encoder, *config.crop.statistics, config.method, config.target.name)
    origin["trained_on"] = hardware(fabric)
    if parse_weights(config.weights).has_weights:
        origin["continued_from"] = config.weights
    if teacher_setup is not None:
        teacher = teacher_setup.teacher
        origin["teacher"] = {"model": teacher.encoder.model_name, "digest": teacher.digest}
    model = encoder.model
    if complete and config.bn_recalibrate and batch_norms(model):
        model, count, shift = recalibrated(encoder, _unmasked(trained, encoder.image_size), config.bn_images)
        say(
            f"batch norms re-estimated on {count} unmasked images: "
            f"running means moved by {shift:.2f} standard deviations on average"
        )
    elif complete and config.bn_recalibrate:
        say(f"bn_recalibrate: {config.model} has no batch norm, so there is nothing to re-estimate")
    save_encoder(run, with_own_tables(model), origin)
    write_report(run, _described(config, outcome), trained.held_out, outcome)
    if outcome.skipped_images:
        say(f"{outcome.skipped_images} unreadable images were skipped: {run / SKIPPED} lists them")
    say(f"{run / WEIGHTS}: the encoder; {run / REPORT}: the report")
    say(outcome.verdict)


def _described(config: PretrainConfig, outcome: Outcome) -> RunDescription:
    facts = [
        ("data", f"{config.data} ({outcome.images} images, {outcome.skipped_images} unreadable)"),
        (
            "image size",
            ", then ".join(f"{h} x {w} pixels" for h, w in (stage.size for stage in config.planned_stages)),
        ),
        ("steps", f"{outcome.steps} of {outcome.total_steps}"),
        ("batch", f"{config.batch_size} images"),
        ("peak learning rate", f"{scaled_lr(config.optim.base_lr, config.batch_size):.3g}"),
        ("method", config.method),
        *([("teacher", config.distill.teacher)] if config.distill.teacher else []),
        ("target", config.target.name),
    ]
    return RunDescription(
        config.model, config.method, facts, config.mask.size, config.crop.statistics, to_yaml(config)
    )


def _unmasked(trained: Trained, size: Size) -> Iterator[Tensor]:
    """Yield training crops at the encoder's image size, from the start of the stage, repeating endlessly."""
    while True:
        for micro_batches in trained.loader(trained.stage.first_step):
            for (images, _), _ in micro_batches:
                same = images.shape[2:] == size  # UM-MAE's encoder takes half-size images
                yield images if same else F.interpolate(images, size, mode="bilinear", antialias=True)
