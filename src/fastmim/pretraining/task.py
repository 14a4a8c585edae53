"""One run, from the first step to the report: read `learn` from top to bottom."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import nn

from fastmim._version import __version__
from fastmim.config import PretrainConfig, check_resumed, config_text, resolved
from fastmim.data.loading.train_loader import split_images
from fastmim.data.loading.unreadable import SKIPPED, UnreadableLog
from fastmim.data.parts import splits_note
from fastmim.data.sources.base import ImageSource, fingerprint, notes_of
from fastmim.methods.base import Method
from fastmim.methods.distillation import Distilled
from fastmim.pretraining.build import FREE_ON_RESUME, build_method
from fastmim.pretraining.outputs import leave, summary, way
from fastmim.pretraining.report import Outcome
from fastmim.pretraining.stage_data import Given, Network, prepare
from fastmim.pretraining.teacher import load_teacher
from fastmim.pretraining.teacher_features import build_teacher_features, measure_both, with_teacher_features
from fastmim.train.distributed import precision_of, quiet_warnings
from fastmim.train.kernels import check_kernels, own_threads
from fastmim.train.loop import Feed, Loop, Progress
from fastmim.train.optim import build_adamw
from fastmim.train.resuming import Checkpoint, leg_of
from fastmim.train.run_dir import written
from fastmim.train.run_files import CONFIG, LAST, METRICS, REPORT, SAMPLES
from fastmim.train.schedules import build_schedule
from fastmim.train.session import opened
from fastmim.train.settings import Resume
from fastmim.train.stages import build_plan
from fastmim.weights.encoder_file import ORIGIN, WEIGHTS

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


def run_on(
    fabric: Fabric,
    source: ImageSource,
    config: PretrainConfig,
    resume: Resume,
    overwrite: bool,
    quiet: bool,
    module: nn.Module | None = None,
) -> RunResult:
    """A run on the devices of ``fabric``; every process of a run calls this."""
    check_kernels(config.kernels, fabric.device)
    with own_threads(), written(fabric, Path(config.out), RUN_FILES, resume, overwrite) as checkpoint:
        return learn(fabric, source, config, checkpoint, quiet, module)


def learn(
    fabric: Fabric,
    source: ImageSource,
    config: PretrainConfig,
    checkpoint: Checkpoint | None,
    quiet: bool,
    module: nn.Module | None,
) -> RunResult:
    """All of a run in its folder, from ``checkpoint`` on where there is one."""
    run = Path(config.out)
    state = checkpoint.state if checkpoint is not None else None
    first = fabric.is_global_zero

    # What learns, and for how long.
    split = split_images(len(source), config.held_out, config.seed)
    plan = build_plan(config.planned_stages, len(split.training), config.batch_size, config.micro_batch)
    stage = plan.stages[0]
    if checkpoint is not None:
        stage = leg_of(checkpoint, plan)
    method = build_method(config, module)
    encoder = method.encoder
    config = resolved(
        config, encoder.stride, method.target.cell, encoder.full_kwargs, *config.crop.statistics
    )
    for earlier in plan.stages[1 : stage.number + 1]:
        method.set_image_size(earlier.image_size)
    teacher_setup = load_teacher(config, method, stage.image_size)
    learner: Method | Distilled = method
    if teacher_setup is not None:
        learner = teacher_setup.learner(method, config.distill)
        config = replace(config, distill=replace(config.distill, layers=tuple(map(str, teacher_setup.pairs))))
    network = Network(method, teacher_setup, learner, build_adamw(learner, config.optim))

    # What is known already.
    facts: dict[str, Any] = {"data_digest": fingerprint(source), "world_size": fabric.world_size}
    if teacher_setup is not None:
        facts["teacher_digest"] = teacher_setup.teacher.digest
    if state is not None:
        check_resumed(run, config, FREE_ON_RESUME, state, facts)
    unreadable_log = UnreadableLog(run / SKIPPED, len(source), config.max_unreadable)
    evaluate_at = plan.evaluation_steps(config.evaluations, config.log_every_steps)

    text = config_text("pretrain", config)
    with opened(run, plan, text, checkpoint, first, quiet, config.deterministic) as (display, log, stop):
        given = Given(fabric, source, config, split, unreadable_log, display.say, torch.get_num_threads())
        progress = Progress()
        for note in (*notes_of(source), splits_note(config.data, source)):
            if note:
                display.say(f"data: {note}")

        while True:
            for line in summary(config, network, plan, stage, len(split.held_out)):
                display.say(line)
            choices = state["choices"] if state else {"micro_batch": stage.micro_batch}
            material = prepare(given, network, stage, choices)
            held_out = material.held_out
            feed: Feed = material.feeder
            evaluate: Evaluate = partial(held_out.measure, display.say)
            choices = {
                "precision": precision_of(fabric),
                "micro_batch": material.micro_batch,
                "kernels": asdict(material.kernels),
            }
            if network.teacher_setup is not None and isinstance(learner, Distilled):
                drawn = {
                    **facts,
                    "precision": choices["precision"],
                    "micro_batch": material.micro_batch,
                    "split": len(split.held_out),
                }
                teacher_features = build_teacher_features(
                    fabric, config, network.teacher_setup, stage, drawn, display.say
                )
                feed = with_teacher_features(feed, teacher_features, material.feeder.share.first)
                evaluate = partial(measure_both, held_out, learner, teacher_features, display.say)
            with quiet_warnings():
                wrapped = fabric.setup_module(learner)
            loop = Loop(
                fabric,
                wrapped,
                network.optimizer,
                build_schedule(config.schedule, config.optim.base_lr, plan, stage),
                feed,
                run,
                log,
                config.loop,
                config.optim,
                plan,
                stage,
                progress,
                extra={"choices": choices, "fastmim_version": __version__, "method": config.method, **facts},
                evaluate=evaluate if first else dict,
                evaluate_at=evaluate_at,
                say=display.say,
            )
            for line in way(fabric, config, network, plan, stage, choices):
                display.say(line)
            if state is not None:
                loop.restore(state)
                display.say(f"resumed at step {loop.progress.step} of {plan.total_steps}")
            else:
                loop.save()  # a full disk shows now, and a return always has somewhere to go
            state = None
            complete = loop.train(stop)
            progress = loop.handed_over()
            if not complete or stage is plan.stages[-1]:
                break
            stage = plan.stages[stage.number + 1]
            network = network.grown(config, stage)

        outcome = Outcome(
            loop.progress.step,
            plan.total_steps,
            held_out.loss() if first else math.nan,
            held_out.trivial if first else math.nan,
            len(source),
            len(unreadable_log.skipped),
            split.shared,
        )
        if first:
            leave(fabric, run, config, network, material, outcome, complete, display)
    return RunResult(
        run,
        complete,
        outcome.steps,
        outcome.held_out_loss,
        outcome.trivial_loss,
        outcome.skipped_images,
        stop.signal,
    )
