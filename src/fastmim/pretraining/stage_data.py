"""What a leg of a run works with: data, network, how its steps are computed, and what measures it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric

from fastmim.config import PretrainConfig
from fastmim.data.loading.dataset import Crops, to_images
from fastmim.data.loading.train_loader import Feeder, Share, Split, held_out_crops
from fastmim.data.loading.unreadable import SkipList
from fastmim.data.seeds import HELD_OUT_SEED, MASK_SEED, seeded_generator
from fastmim.data.sources.base import ImageSource
from fastmim.encoders.batch_size import has_batch_norm
from fastmim.methods.base import Method
from fastmim.methods.distillation import Distilled
from fastmim.pretraining.build import fitting_micro_batch, kernel_config, kernel_facts, use_kernels
from fastmim.pretraining.evaluation import HeldOut
from fastmim.pretraining.teacher import Teaching, load_teaching
from fastmim.system.hardware import loader_workers
from fastmim.train.autotune import StepToTune, settle_kernels
from fastmim.train.kernels import Kernels
from fastmim.train.optim import build_adamw, carry_state
from fastmim.train.sampler import Stream
from fastmim.train.stages import Leg


@dataclass(frozen=True)
class Given:
    """What is the same in all legs of a run."""

    fabric: Fabric
    source: ImageSource
    config: PretrainConfig
    split: Split
    skips: SkipList
    say: Callable[[str], None]
    threads: int
    """Of this process, before a leg chose fewer."""


@dataclass(frozen=True)
class Network:
    """What learns, at the size of a leg."""

    method: Method
    teaching: Teaching | None
    learner: Method | Distilled
    """The method, or what has it learn from the teacher, too."""
    optimizer: torch.optim.AdamW

    def grown(self, config: PretrainConfig, leg: Leg) -> "Network":
        """The same at the size of ``leg``, with an optimiser that goes on where this one stands."""
        carry = self.learner.set_image_size(leg.image_size)
        optimizer = build_adamw(self.learner, config.optim)
        carry_state(self.optimizer, optimizer, carry)
        teaching = load_teaching(config, self.method, leg.image_size)
        return Network(self.method, teaching, self.learner, optimizer)


@dataclass(frozen=True)
class Material:
    """What a run learns from, and what it is only measured on, at the size of one of its legs."""

    leg: Leg
    held_out: HeldOut
    feeder: Feeder
    micro_batch: int
    kernels: Kernels


def prepare(given: Given, network: Network, leg: Leg, choices: dict[str, Any]) -> Material:
    """The data of a leg, the way its steps are computed, and the loss on held-out images.

    Args:
        choices: what is settled already, from a checkpoint or by the stage.
    """
    torch.set_num_threads(given.threads)
    fabric, config, split, skips = given.fabric, given.config, given.split, given.skips
    method, teaching = network.method, network.teaching
    world = fabric.world_size
    share = Share.of(leg.batch_size, fabric.global_rank, world)
    size, chans = leg.image_size, config.in_chans
    mean = torch.tensor(config.crop.mean, device=fabric.device)
    std = torch.tensor(config.crop.std, device=fabric.device)
    network.learner.to(fabric.device)
    teacher = teaching.teacher.to(fabric.device) if teaching is not None else None

    crops_of = partial(
        Crops, given.source, config=config.crop, size=size, chans=chans, max_pixels=config.max_pixels
    )
    crops = crops_of(split.held_out)
    images = to_images(held_out_crops(crops, config.held_out, config.seed, skips), mean, std)
    generator = seeded_generator(HELD_OUT_SEED, MASK_SEED, config.seed)
    mask = method.draw_mask(generator, len(images), size).to(fabric.device)

    if "kernels" in choices:
        kernels = Kernels(**choices["kernels"])
    else:
        kernels = settle_kernels(
            fabric,
            kernel_config(config),
            StepToTune(
                method,
                lambda count: (images[:count], mask[:count]),
                min(len(images), max(1, leg.batch_size // world)),
                (leg.last_step - leg.first_step) * leg.batch_size / world,
                kernel_facts(config, method, size),
            ),
            given.say,
        )
    use_kernels(config, method, network.optimizer, kernels)
    micro_batch = choices["micro_batch"] or fitting_micro_batch(
        fabric, network.learner, teacher, leg, images, mask
    )
    micro_batch = min(micro_batch, share.count)

    stream = Stream(split.training, config.seed)
    feeder = Feeder(
        crops_of(split.training),
        batches=lambda step: stream.batches(leg, step, share.part),
        beside=lambda _, step: method.draw_mask(
            seeded_generator(MASK_SEED, config.seed, step), share.whole, size
        )[share.part],
        skips=skips,
        micro_batch=micro_batch,
        workers=loader_workers(config.workers, fabric.world_size // config.num_nodes),
        seed=config.seed,
        share=share,
        mean=mean,
        std=std,
        avoid_single=has_batch_norm(network.learner),
    )
    held_out = HeldOut(method, images, mask, micro_batch, fabric.autocast)
    return Material(leg, held_out, feeder, micro_batch, kernels)
