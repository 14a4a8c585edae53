"""`fastmim pretrain`: configuration -> encoder, method, data, loop, proof. Read `_run` from top to bottom."""

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric

from fastmim import __version__
from fastmim.config import PretrainConfig, build, differences, merge, read_yaml, resolved, to_yaml
from fastmim.data.feed import HELD_OUT_SEED, MASK_SEED, Feeder, held_out_crops, seeded_generator, split_images
from fastmim.data.images import ImageSource, fingerprint, open_images
from fastmim.data.loader import Crops, choose_workers, to_images
from fastmim.data.skips import SKIPPED, SkipList
from fastmim.encoders.adapter import build_encoder
from fastmim.errors import UsageError
from fastmim.methods.input_masking import InputMasking
from fastmim.methods.learning import HeldOut
from fastmim.recipes import find_recipe
from fastmim.report.run import Outcome, write_report
from fastmim.targets import build_target
from fastmim.train.checkpoint import LAST, load_checkpoint, remove_leftovers, write_atomically
from fastmim.train.device import choose_micro_batch, saved_bytes
from fastmim.train.launch import (
    build_fabric,
    deterministic_kernels,
    is_first_process,
    launch_processes,
    quiet_warnings,
    started_by_launcher,
)
from fastmim.train.loop import Loop, LoopConfig
from fastmim.train.optim import build_adamw
from fastmim.train.rundir import CONFIG, REPORT, SAMPLES, prepare_run_directory
from fastmim.train.runlog import METRICS, Display, RunLog
from fastmim.train.sampler import Stream
from fastmim.train.schedules import Schedule, build_schedule
from fastmim.train.signals import StopRequest
from fastmim.transfer.weights import ORIGIN, WEIGHTS, describe_encoder, save_encoder

RUN_FILES = (CONFIG, METRICS, LAST, WEIGHTS, ORIGIN, REPORT, SAMPLES, SKIPPED)
METHOD = "fastmim"

# What a resumed run may change: neither the weights nor anything that is drawn depends on it.
FREE_ON_RESUME = frozenset(
    {
        "data",
        "out",
        "workers",
        "max_unreadable",
        "checkpoint_every_minutes",
        "checkpoint_every_steps",
        "keep_checkpoints",
    }
)


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


def pretrain(
    *,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    model: str | None = None,
    config: str | os.PathLike[str] | None = None,
    recipe: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> RunResult:
    """Pre-train a backbone on a folder of unlabelled images.

    Args:
        data: folder, tar, parquet, saved dataset, ``hf:NAME[:SPLIT]`` or ``demo:NAME`` of images.
        out: folder that the run is written to.
        model: timm name of the backbone.
        config: YAML file with settings; arguments given here win.
        recipe: name of a recipe to start from.
        resume: go on with the run in ``out``, if there is one.
        overwrite: replace the run in ``out``.
        quiet: print nothing.
        settings: any field of `fastmim.config.PretrainConfig`; groups as mappings
            (``mask={"ratio": 0.6}``) or dotted (``**{"mask.ratio": 0.6}``).

    Returns:
        Where the run lies and how it ended. With several devices they are started as new processes, so
        a script must call this below ``if __name__ == "__main__":``.

    Raises:
        UsageError: a setting, path or model that does not work; nothing was started.
        RunError: the run had to end; its last checkpoint is intact.
    """
    named = {"data": data, "out": out, "model": model}
    given = {name: os.fspath(value) for name, value in named.items() if value is not None} | settings
    base = base_config(config, recipe, given.get("out") if resume else None)
    return run_pretraining(merge(base, given), resume, overwrite, quiet)


def base_config(
    config: str | os.PathLike[str] | None, recipe: str | None, resumed: str | None
) -> PretrainConfig:
    """What a caller's settings are laid over: a stored run, a recipe, a file, or the defaults."""
    base = find_recipe(recipe) if recipe else PretrainConfig()
    if resumed and (stored := Path(resumed).expanduser() / CONFIG).is_file():
        base = build(PretrainConfig, read_yaml(stored), f"{stored}: ")
    if config:
        base = merge(base, read_yaml(Path(config).expanduser()), f"{os.fspath(config)}: ")
    return base


def run_pretraining(
    config: PretrainConfig, resume: bool = False, overwrite: bool = False, quiet: bool = False
) -> RunResult:
    """Run a configuration, on one device in this process or on several in processes of their own."""
    if not config.data:
        raise UsageError("data is missing: give a folder of images, or demo:photos to try it")
    if not config.out:
        raise UsageError("out is missing: give a folder that the run is written to")
    run = Path(config.out).expanduser()
    config = replace(config, out=str(run))
    source = open_images(config.data)
    resumes = resume and (run / LAST).is_file()
    if not resumes:
        build_method(config)  # a model or size that does not work is told before anything is written
    if is_first_process():
        prepare_run_directory(run, RUN_FILES, resume, overwrite)
    precision = load_checkpoint(run / LAST)["choices"]["precision"] if resumes else config.precision
    fabric = build_fabric(config.accelerator, config.devices, config.num_nodes, precision)
    if fabric.world_size > 1 and not started_by_launcher():
        result: RunResult = launch_processes(
            fabric, partial(_run, source=source, config=config, resumes=resumes, quiet=quiet)
        )
        return result
    fabric.launch()
    return _run(fabric, source, config, resumes, quiet)


def build_method(config: PretrainConfig) -> InputMasking:
    """The backbone, and the method around it, with weights drawn from the seed."""
    torch.manual_seed(config.seed)
    encoder = build_encoder(config.model, config.size, config.in_chans, config.model_kwargs, config.encoder)
    target = build_target(config.target, encoder.stride)
    return InputMasking(encoder, target, config.mask, config.decoder, config.target.loss)


def _run(
    fabric: Fabric,
    source: ImageSource,
    config: PretrainConfig,
    resumes: bool,
    quiet: bool,
) -> RunResult:
    run = Path(config.out)
    first = fabric.is_global_zero

    # What learns.
    method = build_method(config)
    config = resolved(config, method.encoder.stride, method.target.cell, method.encoder.model_kwargs)
    optimizer = build_adamw(method, config.optim)
    with quiet_warnings():
        module = fabric.setup_module(method)

    # What it learns from, and what it is only measured on.
    split = split_images(len(source), config.held_out, config.seed)
    skips = SkipList(run / SKIPPED, len(source), config.max_unreadable)
    crops = Crops(source, split.training, config.crop, config.size, config.in_chans)
    held_out_source = Crops(source, split.held_out, config.crop, config.size, config.in_chans)
    mean = torch.tensor(config.crop.mean, device=fabric.device)
    std = torch.tensor(config.crop.std, device=fabric.device)

    # For how long.
    steps_per_epoch = len(split.training) / config.batch_size
    total_steps = config.steps or max(1, math.ceil(config.epochs * steps_per_epoch))
    schedule = build_schedule(config.schedule, config.peak_lr, total_steps, steps_per_epoch)
    evaluations = max(1, min(config.evaluations, total_steps // config.log_every_steps))
    evaluate_at = frozenset(math.ceil(total_steps * i / evaluations) for i in range(1, evaluations + 1))

    # What is known already.
    facts = {"data_digest": fingerprint(source), "world_size": fabric.world_size}
    state = load_checkpoint(run / LAST) if resumes else None
    if state is not None:
        _check_resumed(run, config, state, facts)

    with contextlib.ExitStack() as stack:
        stack.enter_context(deterministic_kernels(config.deterministic))
        display = stack.enter_context(
            Display(total_steps, total_steps / steps_per_epoch, quiet=quiet or not first)
        )
        images = to_images(held_out_crops(held_out_source, config.held_out, config.seed, skips), mean, std)
        mask_generator = seeded_generator(HELD_OUT_SEED, MASK_SEED, config.seed)
        mask = method.draw_mask(mask_generator, len(images), config.size).to(fabric.device)
        if state is not None:
            choices = state["choices"]
        else:
            size = config.micro_batch or _fitting_micro_batch(fabric, method, config, images, mask)
            choices = {"precision": _precision_of(fabric), "micro_batch": size}
        held_out = HeldOut(method, images, mask, choices["micro_batch"], fabric.autocast)

        stream = Stream(split.training, config.seed)
        feeder = Feeder(
            crops,
            batches=lambda step: stream.batches(
                step, total_steps, config.batch_size, fabric.global_rank, fabric.world_size
            ),
            draw_mask=lambda generator, count: method.draw_mask(generator, count, config.size),
            skips=skips,
            micro_batch=choices["micro_batch"],
            workers=_workers(config, fabric),
            seed=config.seed,
            rank=fabric.global_rank,
            mean=mean,
            std=std,
        )

        log = None
        if first:
            remove_leftovers(run)
            if state is None:
                write_atomically(run / CONFIG, lambda file: file.write(_config_text(config)))
            log = RunLog(run, display, state["metrics_bytes"] if state else 0, _step_of(state))
            stack.callback(log.close)
        loop = Loop(
            fabric,
            module,
            optimizer,
            schedule,
            feeder,
            run,
            log,
            LoopConfig(
                seed=config.seed,
                batch_size=config.batch_size,
                steps_per_epoch=steps_per_epoch,
                log_every_steps=config.log_every_steps,
                checkpoint_every_steps=config.checkpoint_every_steps,
                checkpoint_every_minutes=config.checkpoint_every_minutes,
                keep_checkpoints=config.keep_checkpoints,
            ),
            config.optim,
            extra={"choices": choices, "fastmim_version": __version__, **facts},
            evaluate=lambda: _measure(held_out, display) if first else {},
            evaluate_at=evaluate_at,
            say=display.say,
        )
        for line in _summary(
            fabric, config, method, len(split.training), len(split.held_out), choices, schedule
        ):
            display.say(line)
        if state is not None:
            loop.restore(state)
            display.say(f"resumed at step {loop.progress.step} of {total_steps}")

        stop = stack.enter_context(StopRequest())
        if state is None:
            loop.save()  # a full disk shows now, and a return always has somewhere to go
        complete = loop.train(stop)
        outcome = Outcome(
            loop.progress.step,
            total_steps,
            held_out.loss() if first else math.nan,
            held_out.trivial,
            len(source),
            len(skips.skipped),
            split.shared,
        )
        if first:
            _leave(run, config, method, held_out, outcome, complete, display)
    return RunResult(
        run,
        complete,
        outcome.steps,
        outcome.held_out_loss,
        outcome.trivial_loss,
        outcome.skipped_images,
        stop.signal,
    )


def _check_resumed(run: Path, config: PretrainConfig, state: dict[str, Any], facts: dict[str, Any]) -> None:
    """Raise UsageError unless the run would go on as it began."""
    stored = build(PretrainConfig, read_yaml(run / CONFIG), f"{run / CONFIG}: ")
    for name, (old, new) in differences(stored, config).items():
        if name not in FREE_ON_RESUME:
            raise UsageError(
                f"{name} = {new!r} differs from the {old!r} that the run in {run} began with; "
                "leave it out to resume, or start a new run"
            )
    if state["data_digest"] != facts["data_digest"]:
        raise UsageError(f"data: {config.data} no longer holds the images that the run in {run} began with")
    if state["world_size"] != facts["world_size"]:
        raise UsageError(
            f"the run in {run} began with {state['world_size']} processes, not {facts['world_size']}"
        )


def _fitting_micro_batch(
    fabric: Fabric, method: InputMasking, config: PretrainConfig, images: torch.Tensor, mask: torch.Tensor
) -> int:
    """As many images as fit, judged by what two of them make autograd keep."""
    count = min(2, len(images))

    def forward() -> object:
        with fabric.autocast():
            return method(images[:count], mask[:count])

    weights = sum(p.numel() * p.element_size() for p in method.parameters())
    method.eval()  # the running statistics of batch norms are none of this trial's business
    per_image = saved_bytes(method, forward) // count
    method.train()
    share = config.batch_size // fabric.world_size
    return choose_micro_batch(share, per_image, 3 * weights, fabric.device)


def _workers(config: PretrainConfig, fabric: Fabric) -> int:
    if config.workers is not None:
        return config.workers
    return choose_workers(max(1, fabric.world_size // config.num_nodes))


def _precision_of(fabric: Fabric) -> str:
    return str(fabric._precision.precision)


def _step_of(state: dict[str, Any] | None) -> int:
    return int(state["progress"]["step"]) if state else 0


def _config_text(config: PretrainConfig) -> bytes:
    head = f"# fastmim {__version__}; `fastmim pretrain --config FILE --out FOLDER` repeats this run.\n"
    return (head + to_yaml(config)).encode()


def _measure(held_out: HeldOut, display: Display) -> dict[str, float]:
    loss = held_out.loss()
    display.say(f"held-out loss {loss:.4f}, trivial predictor {held_out.trivial:.4f}")
    return {"held_out_loss": loss, "trivial_loss": held_out.trivial}


def _summary(
    fabric: Fabric,
    config: PretrainConfig,
    method: InputMasking,
    training: int,
    held_out: int,
    choices: dict[str, Any],
    schedule: Schedule,
) -> Iterator[str]:
    parameters = sum(p.numel() for p in method.encoder.parameters()) / 1e6
    h, w = (side // method.encoder.stride for side in config.size)
    yield (
        f"{config.model}: {parameters:.1f} M parameters, stride {method.encoder.stride}, "
        f"{h}x{w} tokens of width {method.encoder.width} at {config.size[0]}x{config.size[1]} pixels"
    )
    yield f"{config.data}: {training} images to train on, {held_out} held out"
    yield (
        f"batch {config.batch_size} as {fabric.world_size} x {choices['micro_batch']} "
        f"on {fabric.device.type} in {choices['precision']}; "
        f"lr {schedule.peak_lr:.3g} after {schedule.warmup_steps} of {schedule.total_steps} steps"
    )


def _leave(
    run: Path,
    config: PretrainConfig,
    method: InputMasking,
    held_out: HeldOut,
    outcome: Outcome,
    complete: bool,
    display: Display,
) -> None:
    """Write the encoder, the sheet and the page, and say how it went."""
    origin = describe_encoder(method.encoder, config.crop.mean, config.crop.std, METHOD, config.target.name)
    save_encoder(run, method.encoder, origin)
    write_report(run, config, held_out, outcome)
    if outcome.skipped_images:
        display.say(f"{outcome.skipped_images} unreadable images were skipped: {run / SKIPPED} lists them")
    if not complete:
        display.say(
            f"stopped at step {outcome.steps} of {outcome.total_steps}; "
            f"a checkpoint is written: go on with --resume --out {run}"
        )
    display.say(f"{run / WEIGHTS}: the encoder; {run / REPORT}: the report")
    display.say(outcome.verdict)
