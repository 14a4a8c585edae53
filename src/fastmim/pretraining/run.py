"""One run, from the first step to the report: read `run_on` from top to bottom."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import nn

from fastmim import __version__
from fastmim.config import PretrainConfig, check_resumed, config_text, resolved
from fastmim.data.feed import (
    HELD_OUT_SEED,
    MASK_SEED,
    Feeder,
    Split,
    held_out_crops,
    seeded_generator,
    split_images,
)
from fastmim.data.images import ImageSource, fingerprint
from fastmim.data.loader import Crops, loader_workers, to_images
from fastmim.data.skips import SKIPPED, SkipList
from fastmim.methods.base import Method
from fastmim.methods.distillation import Distilled
from fastmim.methods.learning import HeldOut
from fastmim.pretraining.finish import leave, summary
from fastmim.pretraining.lessons import lessons_of, measure_both, taught
from fastmim.pretraining.start import (
    FREE_ON_RESUME,
    build_method,
    fitting_micro_batch,
    kernel_config,
    use_kernels,
)
from fastmim.pretraining.teaching import Teaching, load_teaching
from fastmim.report.run import Outcome
from fastmim.train.checkpoint import LAST, load_checkpoint
from fastmim.train.kernels import Kernels, settle_kernels
from fastmim.train.launch import precision_of, quiet_warnings
from fastmim.train.loop import Feed, Loop, LoopConfig, Progress
from fastmim.train.optim import build_adamw, carry_state
from fastmim.train.rundir import CONFIG, REPORT, SAMPLES
from fastmim.train.runlog import METRICS
from fastmim.train.sampler import Stream
from fastmim.train.schedules import build_schedule
from fastmim.train.session import opened
from fastmim.train.stages import Leg, build_plan
from fastmim.transfer.weights import ORIGIN, WEIGHTS

Evaluate = Callable[[], dict[str, float]]

RUN_FILES = (CONFIG, METRICS, LAST, WEIGHTS, ORIGIN, REPORT, SAMPLES, SKIPPED)


class RunResult(NamedTuple):
    """How a run ended."""

    run: Path
    complete: bool
    steps: int
    held_out_loss: float
    trivial_loss: float
    skipped_images: int
    stopped_by: int | None
    """Number of the signal that ended it before its time."""


@dataclass(frozen=True)
class Material:
    """What a run learns from, and what it is only measured on, at the size of one of its legs."""

    leg: Leg
    held_out: HeldOut
    feeder: Feeder
    micro_batch: int
    kernels: Kernels


def run_on(
    fabric: Fabric,
    source: ImageSource,
    config: PretrainConfig,
    resumes: bool,
    quiet: bool,
    module: nn.Module | None = None,
) -> RunResult:
    """A run on the devices of ``fabric``; every process of a run calls this."""
    run = Path(config.out)
    first = fabric.is_global_zero
    state = load_checkpoint(run / LAST) if resumes else None

    # What learns, and for how long.
    split = split_images(len(source), config.held_out, config.seed)
    plan = build_plan(config.course, len(split.training), config.batch_size, config.micro_batch)
    leg = plan.legs[state["leg"] if state else 0]
    method = build_method(config, module)
    encoder = method.encoder
    config = resolved(
        config, encoder.stride, method.target.cell, encoder.full_kwargs, *config.crop.statistics
    )
    for earlier in plan.legs[1 : leg.number + 1]:
        method.set_image_size(earlier.image_size)
    teaching = load_teaching(config, method, leg.image_size)
    learner: Method | Distilled = method
    if teaching is not None:
        learner = teaching.learner(method, config.distill)
        config = replace(config, distill=replace(config.distill, layers=tuple(map(str, teaching.pairs))))
    optimizer = build_adamw(learner, config.optim)

    # What is known already.
    facts: dict[str, Any] = {"data_digest": fingerprint(source), "world_size": fabric.world_size}
    if teaching is not None:
        facts["teacher_digest"] = teaching.teacher.digest
    if state is not None:
        check_resumed(run, config, FREE_ON_RESUME, state, facts)
    skips = SkipList(run / SKIPPED, len(source), config.max_unreadable)
    evaluate_at = plan.evaluation_steps(config.evaluations, config.log_every_steps)

    text = config_text("pretrain", config)
    with opened(run, plan, text, state, first, quiet, config.deterministic) as (display, log, stop):
        progress = Progress()

        while True:
            choices = state["choices"] if state else {"micro_batch": leg.micro_batch}
            material = prepare(
                fabric, source, config, method, learner, optimizer, teaching, leg, split, skips, choices
            )
            held_out = material.held_out
            feed: Feed = material.feeder
            evaluate: Evaluate = partial(held_out.measure, display.say)
            choices = {
                "precision": precision_of(fabric),
                "micro_batch": material.micro_batch,
                "kernels": asdict(material.kernels),
            }
            if teaching is not None and isinstance(learner, Distilled):
                drawn = {**facts, "precision": choices["precision"], "split": len(split.held_out)}
                lessons = lessons_of(fabric, config, teaching, leg, drawn, display.say)
                feed = taught(feed, lessons, fabric.global_rank)
                evaluate = partial(measure_both, held_out, learner, lessons, display.say)
            with quiet_warnings():
                wrapped = fabric.setup_module(learner)
            loop = Loop(
                fabric,
                wrapped,
                optimizer,
                build_schedule(config.schedule, config.optim.base_lr, plan, leg),
                feed,
                run,
                log,
                LoopConfig(
                    seed=config.seed,
                    log_every_steps=config.log_every_steps,
                    checkpoint_every_steps=config.checkpoint_every_steps,
                    checkpoint_every_minutes=config.checkpoint_every_minutes,
                    keep_checkpoints=config.keep_checkpoints,
                ),
                config.optim,
                plan,
                leg,
                progress,
                extra={"choices": choices, "fastmim_version": __version__, "method": config.method, **facts},
                evaluate=evaluate if first else dict,
                evaluate_at=evaluate_at,
                say=display.say,
            )
            for line in summary(fabric, config, method, teaching, plan, leg, len(split.held_out), choices):
                display.say(line)
            if state is not None:
                loop.restore(state)
                display.say(f"resumed at step {loop.progress.step} of {plan.total_steps}")
            else:
                loop.save()  # a full disk shows now, and a return always has somewhere to go
            state = None
            complete = loop.train(stop)
            progress = loop.handed_over()
            if not complete or leg is plan.legs[-1]:
                break
            leg = plan.legs[leg.number + 1]
            optimizer = grow(learner, optimizer, config, leg)
            teaching = load_teaching(config, method, leg.image_size)

        outcome = Outcome(
            loop.progress.step,
            plan.total_steps,
            held_out.loss() if first else math.nan,
            held_out.trivial if first else math.nan,
            len(source),
            len(skips.skipped),
            split.shared,
        )
        if first:
            leave(fabric, run, config, method, teaching, material, outcome, complete, display)
    return RunResult(
        run,
        complete,
        outcome.steps,
        outcome.held_out_loss,
        outcome.trivial_loss,
        outcome.skipped_images,
        stop.signal,
    )


def prepare(
    fabric: Fabric,
    source: ImageSource,
    config: PretrainConfig,
    method: Method,
    learner: Method | Distilled,
    optimizer: torch.optim.AdamW,
    teaching: Teaching | None,
    leg: Leg,
    split: Split,
    skips: SkipList,
    choices: dict[str, Any],
) -> Material:
    """The data of a leg, the way its steps are computed, and the loss on held-out images.

    Args:
        choices: what is settled already, from a checkpoint or by the stage.
    """
    rank, world = fabric.global_rank, fabric.world_size
    size, chans = leg.image_size, config.in_chans
    mean = torch.tensor(config.crop.mean, device=fabric.device)
    std = torch.tensor(config.crop.std, device=fabric.device)
    learner.to(fabric.device)
    teacher = teaching.teacher.to(fabric.device) if teaching is not None else None

    crops = Crops(source, split.held_out, config.crop, size, chans)
    images = to_images(held_out_crops(crops, config.held_out, config.seed, skips), mean, std)
    generator = seeded_generator(HELD_OUT_SEED, MASK_SEED, config.seed)
    mask = method.draw_mask(generator, len(images), size).to(fabric.device)

    if "kernels" in choices:
        kernels = Kernels(**choices["kernels"])
    else:
        kernels = settle_kernels(
            fabric,
            kernel_config(config),
            method,
            lambda count: method(images[:count], mask[:count]),
            len(images),
            (leg.last_step - leg.first_step) * leg.batch_size / world,
            {"model": config.model, "arguments": repr(method.encoder.model_kwargs), "size": list(size)},
        )
    use_kernels(config, method, optimizer, kernels)
    micro_batch = choices["micro_batch"] or fitting_micro_batch(fabric, learner, teacher, leg, images, mask)
    micro_batch = min(micro_batch, leg.batch_size // world)

    stream = Stream(split.training, config.seed)
    feeder = Feeder(
        Crops(source, split.training, config.crop, size, chans),
        batches=lambda step: stream.batches(leg, step, rank, world),
        beside=lambda batch, step: method.draw_mask(
            seeded_generator(MASK_SEED, config.seed, rank, step), len(batch.flips_B), size
        ),
        skips=skips,
        micro_batch=micro_batch,
        workers=loader_workers(config.workers, fabric.world_size // config.num_nodes),
        seed=config.seed,
        rank=rank,
        mean=mean,
        std=std,
    )
    held_out = HeldOut(method, images, mask, micro_batch, fabric.autocast)
    return Material(leg, held_out, feeder, micro_batch, kernels)


def grow(
    learner: Method | Distilled, optimizer: torch.optim.AdamW, config: PretrainConfig, leg: Leg
) -> torch.optim.AdamW:
    """Bring the network to the size of ``leg``; returns an optimiser that goes on where the old one stood."""
    carry = learner.set_image_size(leg.image_size)
    larger = build_adamw(learner, config.optim)
    carry_state(optimizer, larger, carry)
    return larger
