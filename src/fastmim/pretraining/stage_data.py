"""What a leg of a run works with: data, network, how its steps are computed, and what measures it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric

from fastmim.config import PretrainConfig
from fastmim.data.loading.dataset import CropDataset, to_images
from fastmim.data.loading.train_loader import Share, Split, TrainLoader, held_out_crops
from fastmim.data.loading.unreadable import UnreadableLog
from fastmim.data.seeds import HELD_OUT_SEED, MASK_SEED, seeded_generator
from fastmim.data.sources.base import ImageSource
from fastmim.encoders.batch_size import has_batch_norm
from fastmim.methods.base import Method
from fastmim.methods.distillation import Distilled
from fastmim.pretraining.build import fitting_micro_batch, kernel_config, kernel_facts, use_kernels
from fastmim.pretraining.evaluation import HeldOut
from fastmim.pretraining.teacher import TeacherSetup, load_teacher
from fastmim.system.hardware import loader_workers
from fastmim.train.autotune import StepToTune, autotune
from fastmim.train.kernels import KernelChoices
from fastmim.train.optim import build_adamw, resample_state
from fastmim.train.sampler import InfiniteSampler
from fastmim.train.stages import Stage


@dataclass(frozen=True)
class Given:
    """What is the same in all legs of a run."""

    fabric: Fabric
    source: ImageSource
    config: PretrainConfig
    split: Split
    unreadable_log: UnreadableLog
    say: Callable[[str], None]
    threads: int
    """Of this process, before a leg chose fewer."""


@dataclass(frozen=True)
class Network:
    """What learns, at the size of a leg."""

    method: Method
    teacher_setup: TeacherSetup | None
    learner: Method | Distilled
    """The method, or what has it learn from the teacher, too."""
    optimizer: torch.optim.AdamW

    def grown(self, config: PretrainConfig, stage: Stage) -> "Network":
        """The same at the size of ``stage``, with an optimiser that goes on where this one stands."""
        resample = self.learner.set_image_size(stage.image_size)
        optimizer = build_adamw(self.learner, config.optim)
        resample_state(self.optimizer, optimizer, resample)
        teacher_setup = load_teacher(config, self.method, stage.image_size)
        return Network(self.method, teacher_setup, self.learner, optimizer)


@dataclass(frozen=True)
class Material:
    """What a run learns from, and what it is only measured on, at the size of one of its legs."""

    stage: Stage
    held_out: HeldOut
    feeder: TrainLoader
    micro_batch: int
    kernels: KernelChoices


def prepare(given: Given, network: Network, stage: Stage, choices: dict[str, Any]) -> Material:
    """The data of a leg, the way its steps are computed, and the loss on held-out images.

    Args:
        choices: what is settled already, from a checkpoint or by the stage.
    """
    torch.set_num_threads(given.threads)
    fabric, config, split, unreadable_log = given.fabric, given.config, given.split, given.unreadable_log
    method, teacher_setup = network.method, network.teacher_setup
    world = fabric.world_size
    share = Share.of(stage.batch_size, fabric.global_rank, world)
    size, chans = stage.image_size, config.in_chans
    mean = torch.tensor(config.crop.mean, device=fabric.device)
    std = torch.tensor(config.crop.std, device=fabric.device)
    network.learner.to(fabric.device)
    teacher = teacher_setup.teacher.to(fabric.device) if teacher_setup is not None else None

    crops_of = partial(
        CropDataset, given.source, config=config.crop, size=size, chans=chans, max_pixels=config.max_pixels
    )
    crops = crops_of(split.held_out)
    images = to_images(held_out_crops(crops, config.held_out, config.seed, unreadable_log), mean, std)
    generator = seeded_generator(HELD_OUT_SEED, MASK_SEED, config.seed)
    mask = method.draw_mask(generator, len(images), size).to(fabric.device)

    if "kernels" in choices:
        kernels = KernelChoices(**choices["kernels"])
    else:
        kernels = autotune(
            fabric,
            kernel_config(config),
            StepToTune(
                method,
                lambda count: (images[:count], mask[:count]),
                min(len(images), max(1, stage.batch_size // world)),
                (stage.last_step - stage.first_step) * stage.batch_size / world,
                kernel_facts(config, method, size),
            ),
            given.say,
        )
    use_kernels(config, method, network.optimizer, kernels)
    micro_batch = choices["micro_batch"] or fitting_micro_batch(
        fabric, network.learner, teacher, stage, images, mask
    )
    micro_batch = min(micro_batch, share.count)

    stream = InfiniteSampler(split.training, config.seed)
    feeder = TrainLoader(
        crops_of(split.training),
        batches=lambda step: stream.batches(stage, step, share.part),
        extra_inputs=lambda _, step: method.draw_mask(
            seeded_generator(MASK_SEED, config.seed, step), share.whole, size
        )[share.part],
        unreadable_log=unreadable_log,
        micro_batch=micro_batch,
        workers=loader_workers(config.workers, fabric.world_size // config.num_nodes),
        seed=config.seed,
        share=share,
        mean=mean,
        std=std,
        avoid_single=has_batch_norm(network.learner),
    )
    held_out = HeldOut(method, images, mask, micro_batch, fabric.autocast)
    return Material(stage, held_out, feeder, micro_batch, kernels)
