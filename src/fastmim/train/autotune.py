"""Choose between equivalent kernels for a training step: the fastest on this device, or the configured ones.

The first process measures them in a child process (see `trials`); all processes use its result.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import torch
from lightning_fabric import Fabric
from pydantic import Field
from torch import Tensor, nn

from fastmim.system.cache import cached_on_disk
from fastmim.system.documents import Finite
from fastmim.system.hardware import device_fingerprint, others_compute
from fastmim.system.threads import THREADS
from fastmim.train.distributed import precision_of
from fastmim.train.kernels import KernelChoices, OptimizerKernel, check_kernels
from fastmim.train.settings import KernelConfig
from fastmim.train.trial_process import Trial
from fastmim.train.trials import NotTried, Trials

WORTH_IT = 1.05  # other kernels must be at least this much faster than the usual ones
FEWER_MAY_TAKE = 1.02  # times as long, with fewer threads: the others remain free
COMPILE_PAYS_AFTER = 1800.0  # seconds of training; compilation takes a minute or two
TRIAL_IMAGES = 64  # at most
OPTIMIZER_TRIAL = 2**22  # parameters

Question = tuple[str, list[Any]]
"""A field of KernelChoices, and the candidates for its value, the usual one first."""


@dataclass(frozen=True)
class _Answers:
    """Cached result: the chosen kernels, and the seconds per image of a step with them."""

    attention: Literal["fused", "plain"]
    memory_format: Literal["contiguous", "channels-last"]
    compile: Literal["none", "target", "model", "cudagraphs"]
    threads: Annotated[int, Field(strict=True, ge=0)]
    seconds: Finite


@dataclass(frozen=True)
class _Faster:
    """Cached result for AdamW's kernels."""

    optimizer: OptimizerKernel


@dataclass(frozen=True)
class StepToTune:
    """A training step on which kernels are measured."""

    module: nn.Module
    """On its device; it is not changed."""
    inputs: Callable[[int], tuple[Tensor, ...]]
    """Number of images -> arguments of ``module``; its result has a ``loss``."""
    most_images: int
    """Largest number of images that ``inputs`` accepts."""
    planned_images: float
    """Images that this process will train on; decides whether compilation can pay off."""
    facts: dict[str, Any]
    """Further cache keys that the fastest kernels depend on: model, kind of training, image size."""


def autotune(
    fabric: Fabric, config: KernelConfig, step: StepToTune, say: Callable[[str], object] = str
) -> KernelChoices:
    """Choose the kernels that ``config`` leaves open: from the cache, or by measuring a copy of ``step``.

    A kernel is chosen only if loss and gradients equal those of the usual kernels up to rounding. One that
    crashes, hangs or gives NaN is rejected, and is not tried again on this device.

    Args:
        say: called with messages about measurements that take time, and about rejected kernels.

    Raises:
        UsageError: the device does not support a configured kernel.
    """
    check_kernels(config, fabric.device)
    settled = fabric.broadcast(_settled(fabric, config, step, say) if fabric.is_global_zero else None)
    assert settled is not None
    return settled


def _settled(
    fabric: Fabric, config: KernelConfig, step: StepToTune, say: Callable[[str], object]
) -> KernelChoices:
    # Collect the cache keys, and the usual kernels that others are compared with.
    device = fabric.device
    images = min(TRIAL_IMAGES, step.most_images)
    told = config.told
    here = device_fingerprint(device)
    precision = precision_of(fabric)
    key = here | step.facts | {"images": images, "told": told, "precision": precision}
    usual = replace(KernelChoices(), **told)
    if config.optimizer == "auto":
        usual = replace(usual, **cached_on_disk("optimizer", here, lambda: _faster_adamw(device), _Faster))

    def quiet() -> bool:
        busy = device.type == "cpu" and others_compute(torch.get_num_threads())
        if busy:
            say("other processes keep this machine busy, so the next run measures again")
        return not busy

    def ask(
        trials: Trials, kind: str, start: KernelChoices, questions: list[Question]
    ) -> tuple[KernelChoices, float]:
        """Return the kernels with the fastest candidate for each question, and seconds per image."""

        def measured() -> dict[str, Any]:
            if questions:
                names = " and ".join(name for name, _ in questions)
                say(f"measuring the fastest {names}, once for this device")
            best, trial = _fastest(start, questions, trials.of, say)
            seconds = trial.seconds if trial.ran else 0.0
            return {name: getattr(best, name) for name in _WAYS} | {"seconds": seconds}

        about_it = key | {"start": asdict(start), "questions": questions}
        known = cached_on_disk(kind, about_it, measured, _Answers, quiet)
        return replace(start, **{name: known[name] for name in _WAYS}), known["seconds"]

    # Measure the kernels, and compilation if the run is long enough for it.
    questions = _questions(config, step.module, device)
    chosen = usual
    with Trials(step.module, step.inputs(images), precision == "bf16-mixed", usual) as trials:
        try:
            if questions or config.compile == "auto":
                chosen, seconds = ask(trials, "kernels", usual, questions)
            if config.compile == "auto" and step.planned_images * seconds >= COMPILE_PAYS_AFTER:
                ways = ["none", "model", *(["cudagraphs"] if device.type == "cuda" else [])]
                chosen, _ = ask(trials, "compile", chosen, [("compile", ways)])
        except NotTried as error:
            say(f"kernels were not measured, since this step cannot be run in a separate process: {error}")
    return chosen


_WAYS = ("attention", "memory_format", "compile", "threads")  # fields of KernelChoices that trials decide


def _questions(config: KernelConfig, module: nn.Module, device: torch.device) -> list[Question]:
    """Return the questions that a measurement can decide."""
    questions: list[Question] = []
    if config.attention == "auto" and any(hasattr(part, "fused_attn") for part in module.modules()):
        questions.append(("attention", ["fused", "plain"]))
    convolutions = sum(isinstance(part, nn.Conv2d) for part in module.modules())
    if config.memory_format == "auto" and convolutions > 1:  # a single one is the patch embedding
        questions.append(("memory_format", ["contiguous", "channels-last"]))
    threads = torch.get_num_threads()
    if device.type == "cpu" and not config.threads and threads > 1 and THREADS not in os.environ:
        halves = [threads >> halvings for halvings in range(1, threads.bit_length())]
        questions.append(("threads", [0, *halves]))
    return questions


def _fastest(
    start: KernelChoices,
    questions: list[Question],
    trial_of: Callable[[KernelChoices], Trial],
    say: Callable[[str], object],
) -> tuple[KernelChoices, Trial]:
    """Decide one question after the other. If the usual kernels fail, nothing else is tried."""
    best, usual = start, trial_of(start)
    fastest = usual
    if not usual.ran:
        say(f"a trial step {usual.failure}; only the usual kernels were tried")
        return best, usual
    for name, (_, *others) in questions:
        for other in others:
            candidate: KernelChoices = replace(best, **{name: other})
            trial = trial_of(candidate)
            enough = FEWER_MAY_TAKE * fastest.seconds if name == "threads" else fastest.seconds / WORTH_IT
            if not trial.ran:
                say(f"{name} {other} {trial.failure}: not taken")
            elif not trial.agrees_with(usual):
                say(f"{name} {other} gave other gradients ({trial.error:.1g} apart): not taken")
            elif trial.seconds <= enough:
                best, fastest = candidate, trial
    return best, fastest


def _faster_adamw(device: torch.device) -> dict[str, Any]:
    """Measure which kernel of AdamW is faster on this device."""
    weights = [nn.Parameter(torch.zeros(OPTIMIZER_TRIAL // 16, device=device)) for _ in range(16)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    seconds = {}
    for kernel in ("fused", "foreach"):
        try:
            optimizer = torch.optim.AdamW(weights, fused=kernel == "fused", foreach=kernel == "foreach")
        except RuntimeError:  # a device without the fused kernel
            continue
        times = []
        for _ in range(4):
            start = time.perf_counter()
            optimizer.step()
            weights[0].sum().item()  # waits for the device
            times.append(time.perf_counter() - start)
        seconds[kernel] = min(times[1:])
    usual = seconds.get("fused", float("inf"))
    return {"optimizer": "foreach" if seconds["foreach"] * WORTH_IT < usual else "fused"}
