"""One fine-tuning run, from the first step to results.json: read `_run_on` from top to bottom."""

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from fastmim._version import __version__
from fastmim.config import ALWAYS_FREE, FinetuneConfig, check_resumed, config_text, resume_flags
from fastmim.data.labelled import Labelled, imbalance
from fastmim.data.loading.channel_stats import channel_statistics
from fastmim.data.loading.dataset import Crops, as_it_is
from fastmim.data.loading.eval_loader import Views
from fastmim.data.loading.train_loader import Feeder, Share
from fastmim.data.loading.unreadable import SKIPPED, SkipList
from fastmim.data.sources.base import fingerprint
from fastmim.data.transforms.augment import Mixing, RandAugment
from fastmim.downstream.accuracy import Accuracy, check_readable, measure_accuracy
from fastmim.downstream.classification.model import Learner
from fastmim.downstream.classification.outputs import RESULTS, write_classifier, write_results
from fastmim.downstream.classification.start import Start, build_classifier
from fastmim.downstream.classification.trial import Trial
from fastmim.encoders.batch_size import check_batch, has_batch_norm
from fastmim.errors import UsageError
from fastmim.system.hardware import loader_workers
from fastmim.train.checkpoint import LAST
from fastmim.train.distributed import hardware, precision_of, quiet_warnings, teller
from fastmim.train.kernels import COMPILES, apply, check_kernels, checkpoint_activations, own_threads
from fastmim.train.layer_decay import build_layered_adamw, levels_line
from fastmim.train.logs import METRICS
from fastmim.train.loop import Loop, Progress
from fastmim.train.optim import scaled_lr, use_kernel
from fastmim.train.resuming import leg_of
from fastmim.train.run_dir import CONFIG, Resume, written
from fastmim.train.sampler import Stream
from fastmim.train.schedules import build_schedule
from fastmim.train.session import opened
from fastmim.train.stages import build_plan
from fastmim.weights.encoder_file import ORIGIN, WEIGHTS, encoder_digest
from fastmim.weights.spec import SCRATCH

RUN_FILES = (CONFIG, METRICS, LAST, WEIGHTS, ORIGIN, RESULTS, SKIPPED)
WARMUP_EPOCHS = 5.0  # the paper's, but at most a tenth of the run
EVALUATION_BATCH = 256
FEW_STEPS = 200  # of which a person is told


class FinetuneResult(NamedTuple):
    """How a run ended."""

    run: Path
    complete: bool
    steps: int
    top1: float
    """Per cent of the validation images; not a number where the run was stopped."""
    top5: float
    stopped_by: int | None
    """Number of the signal that ended it before its time."""


def run_on(
    fabric: Fabric,
    training: Labelled,
    validation: Labelled,
    config: FinetuneConfig,
    resume: Resume,
    overwrite: bool,
    quiet: bool,
    module: nn.Module | None,
) -> FinetuneResult:
    """A run on the devices of ``fabric``; every process of a run calls this."""
    check_kernels(config.kernels, fabric.device)
    with contextlib.ExitStack() as holding:
        holding.enter_context(own_threads())
        return _run_on(fabric, holding, training, validation, config, resume, overwrite, quiet, module)


def _run_on(
    fabric: Fabric,
    holding: contextlib.ExitStack,
    training: Labelled,
    validation: Labelled,
    config: FinetuneConfig,
    resume: Resume,
    overwrite: bool,
    quiet: bool,
    module: nn.Module | None,
) -> FinetuneResult:
    """``holding`` lets go of the run's folder at the end."""
    run = Path(config.out)
    first, rank, world = fabric.is_global_zero, fabric.global_rank, fabric.world_size
    classes = training.classes

    # What learns, and for how long.
    torch.manual_seed(config.seed)
    start = build_classifier(config, len(classes), module)
    plan = build_plan(config.course, len(training), config.batch_size, config.micro_batch)
    (leg,) = plan.legs
    check_batch(
        start.model, start.name, leg.image_size, start.in_chans, leg.batch_size // world, leg.micro_batch
    )
    told: list[str] = []
    config = _resolved(config, start, training, plan.total_epochs, told.append)
    learner = Learner(start.model, config.ema).to(fabric.device)
    optimizer = build_layered_adamw(
        learner.model, config.known_layer_decay, config.optim, config.layer_decay_blocks
    )
    learner.follow(optimizer)
    if config.activation_checkpointing:
        checkpoint_activations(learner.model, start.name)

    # What is known already.
    if run.resolve() in (place := Path(config.encoder).expanduser().resolve(), *place.parents[:1]):
        raise UsageError(f"out: {run} is where the encoder lies; give another folder")
    checkpoint = holding.enter_context(written(fabric, run, RUN_FILES, resume, overwrite))
    state = checkpoint.state if checkpoint is not None else None
    if checkpoint is not None:
        leg_of(checkpoint, plan)
    facts = {
        "data_digest": _digest(training, validation),
        "world_size": world,
        "encoder_digest": encoder_digest(config.encoder),
    }
    if state is not None:
        free = ALWAYS_FREE if config.encoder == SCRATCH else ALWAYS_FREE | {"model"}  # its file says which
        check_resumed(run, config, free, state, facts)
        if state["encoder_digest"] != facts["encoder_digest"]:
            raise UsageError(f"encoder: {config.encoder} no longer holds the weights that {run} began with")

    # What it learns from, and what it is measured on.
    chans, size = config.in_chans, leg.image_size
    mean, std = (torch.tensor(values, device=fabric.device) for values in config.crop.statistics)
    workers = loader_workers(config.workers, world // config.num_nodes)
    choices: dict[str, Any] = state["choices"] if state else {"micro_batch": leg.micro_batch}
    trial = Trial(fabric, learner, config, len(classes), teller(quiet or not first))
    kernels = trial.kernels(start, plan, choices)
    apply(learner, kernels)
    use_kernel(optimizer, kernels.optimizer)
    micro_batch = choices["micro_batch"] or trial.fitting_micro_batch()
    labels = torch.from_numpy(training.by_index())
    skips = SkipList(run / SKIPPED, len(training.source), config.max_unreadable)
    stream = Stream(training.indices, config.seed)
    share = Share.of(leg.batch_size, rank, world)
    varies = config.augment.rand_magnitude > 0
    feeder = Feeder(
        Crops(
            training.source,
            training.indices,
            config.crop,
            size,
            chans,
            RandAugment(config.augment, size, config.crop.statistics[0]) if varies else as_it_is,
            config.max_pixels,
        ),
        batches=lambda step: stream.batches(leg, step, share.part),
        beside=lambda batch, _: labels[batch.indices],
        skips=skips,
        micro_batch=min(micro_batch, share.count),
        workers=workers,
        seed=config.seed,
        share=share,
        mean=mean,
        std=std,
        mix=Mixing(config.augment, len(classes)),
        avoid_single=has_batch_norm(start.model),
    )
    views = Views(
        validation.source,
        validation.indices[rank::world],
        size,
        chans,
        min(EVALUATION_BATCH, 4 * feeder.micro_batch),
        workers,
        mean,
        std,
        config.max_pixels,
    )
    truth = validation.by_index()

    text = config_text("finetune", config)
    with opened(run, plan, text, checkpoint, first, quiet, config.deterministic) as (display, log, stop):

        def measure() -> Accuracy:
            return measure_accuracy(learner.best, views, truth, len(classes), fabric)

        def evaluate() -> dict[str, float]:
            accuracy = measure()
            display.say(f"top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} % of validation")
            return {"top1": accuracy.top1, "top5": accuracy.top5}

        with quiet_warnings():
            wrapped = fabric.setup_module(learner)
        choices = {
            "precision": precision_of(fabric),
            "micro_batch": feeder.micro_batch,
            "kernels": asdict(kernels),
        }
        loop = Loop(
            fabric,
            wrapped,
            optimizer,
            build_schedule(config.schedule, config.optim.base_lr, plan, leg),
            feeder,
            run,
            log,
            config.loop,
            config.optim,
            plan,
            leg,
            Progress(),
            extra={"choices": choices, "fastmim_version": __version__, **facts},
            evaluate=evaluate,
            evaluate_at=plan.evaluation_steps(config.evaluations, config.log_every_steps),
            say=display.say,
        )
        display.say(f"{start.name} from {start.metadata['from']}: {_million(start.model)} M parameters")
        for line in (*start.notes, *told, *(f"data: {note}" for note in training.notes), imbalance(training)):
            if line:
                display.say(line)
        display.say(
            f"{config.data}: {len(training)} labelled images of {len(classes)} classes, "
            f"{len(validation)} to measure on"
        )
        display.say(
            f"batch {leg.batch_size} as {world} x {feeder.micro_batch} on {fabric.device.type} in "
            f"{choices['precision']}, {kernels}"
        )
        display.say(
            f"peak lr {scaled_lr(config.optim.base_lr, leg.batch_size):.3g}, {plan.total_steps} steps; "
            + levels_line(optimizer.param_groups, config.known_layer_decay)
        )
        if plan.total_steps < FEW_STEPS:
            display.say(f"these are {plan.total_steps} steps only: raise --epochs or --steps to learn more")
        if kernels.compile != "none":
            display.say(COMPILES)
        if state is not None:
            loop.restore(state)
            display.say(f"resumed at step {loop.progress.step} of {plan.total_steps}")
        else:
            loop.save()
        complete = loop.train(stop)
        steps, seconds = loop.progress.step, loop.progress.seconds
        if not complete:
            display.say(
                f"stopped at step {steps} of {plan.total_steps}; "
                f"a checkpoint is written: go on with {resume_flags(config)}"
            )
            return FinetuneResult(run, False, steps, float("nan"), float("nan"), stop.signal)
        accuracy = measure()
        check_readable(accuracy, len(validation), config.max_unreadable)
        if first:
            write_classifier(run, config, start, learner, classes)
            facts_of_run = {
                "training_images": len(training),
                "data_notes": training.notes,
                "unreadable_training": len(skips.skipped),
                "training_images_per_class": dict(zip(classes, training.per_class.tolist(), strict=True)),
                "micro_batch": feeder.micro_batch,
                "epochs": plan.total_epochs,
                "steps": steps,
                "seconds": seconds,
                "images_per_second": steps * leg.batch_size / seconds if seconds else None,
                **hardware(fabric),
                "precision": choices["precision"],
            }
            write_results(run, config, start, accuracy, classes, facts_of_run)
        display.say(
            f"top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} %, mean over classes "
            f"{accuracy.mean_class_top1:.2f} %, on {int(accuracy.images.sum())} images, after {seconds:.0f} s"
        )
        broken = len(skips.skipped) + accuracy.unreadable
        if broken:
            display.say(
                f"{broken} unreadable images were left out, {accuracy.unreadable} of them in validation: "
                f"{run / SKIPPED} lists those of training"
            )
        display.say(f"{run / RESULTS}: the figures; {run / WEIGHTS}: the classifier")
    return FinetuneResult(run, True, steps, accuracy.top1, accuracy.top5, None)


def _resolved(
    config: FinetuneConfig, start: Start, training: Labelled, epochs: float, say: Callable[[str], None]
) -> FinetuneConfig:
    """``config`` with what follows from encoder and data written out."""
    crop, schedule, chans = config.crop, config.schedule, start.in_chans
    if crop.mean is None:
        mean, std = start.mean, start.std
        if mean is None:
            source, seed = training.source, config.split_seed
            mean, std = channel_statistics(crop, source, chans, config.size, seed, config.max_pixels, say)
        crop = replace(crop, mean=mean, std=std)
    if schedule.warmup_epochs is None:
        schedule = replace(schedule, warmup_epochs=round(min(WARMUP_EPOCHS, 0.1 * epochs), 6))
    if len(crop.statistics[0]) != chans:
        raise UsageError(f"crop.mean has {len(crop.statistics[0])} numbers, but the images {chans} channels")
    return replace(
        config,
        in_chans=chans,
        crop=crop,
        schedule=schedule,
        layer_decay=config.known_layer_decay,
        head_std=config.known_head_std,
    )


def _digest(*data: Labelled) -> str:
    """Whether a resumed run still sees the same images and classes."""
    digest = hashlib.sha256()
    for part in data:
        digest.update(fingerprint(part.source).encode())
        digest.update(np.ascontiguousarray(part.indices).tobytes())
        digest.update(np.ascontiguousarray(part.labels).tobytes())
    return digest.hexdigest()[:16]


def _million(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}"
