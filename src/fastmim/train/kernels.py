"""Which of several equal ways of computing a step is taken: the fastest on this device, or as told.

They give the same numbers but for rounding, so a checkpoint holds what was chosen and a resumed run keeps it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from fastmim.cache import remembered
from fastmim.documents import Finite
from fastmim.errors import UsageError
from fastmim.train.device import about
from fastmim.train.launch import precision_of

Attention = Literal["fused", "plain"]
MemoryFormat = Literal["contiguous", "channels-last"]
Compile = Literal["none", "target", "model", "cudagraphs"]
OptimizerKernel = Literal["fused", "foreach"]

COMPILES = "the first step compiles, which can take minutes"
WORTH_IT = 1.05  # another way than the usual one must be at least this much faster
TRIAL_SECONDS = 1.0  # for each way, after its first call
TRIAL_CALLS = 5  # at most
COMPILE_PAYS_AFTER = 1800.0  # seconds of training; compiling takes a minute or two
TRIAL_IMAGES = {True: 64, False: 8}  # at most, on a GPU and elsewhere
OPTIMIZER_TRIAL = 2**22  # parameters


@dataclass(frozen=True)
class KernelConfig:
    """How a step is computed. auto: the fastest way on this device, measured once and remembered."""

    attention: Literal["auto", "fused", "plain"] = "auto"
    """timm's attention: PyTorch's fused kernel, or matrix products and a softmax."""
    memory_format: Literal["auto", "contiguous", "channels-last"] = "auto"
    """Layout of images and convolutions in memory."""
    compile: Literal["auto", "none", "target", "model", "cudagraphs"] = "auto"
    """torch.compile: of nothing, of the target (HOG) alone, of the whole model, or that with CUDA graphs.
    auto tries the model where the run takes half an hour or more."""
    optimizer: Literal["auto", "fused", "foreach"] = "auto"
    """AdamW in one kernel, or tensor by tensor; foreach waits for the device once a step."""


@dataclass(frozen=True)
class Kernels:
    """What was chosen. As a mapping it goes into checkpoints."""

    attention: Attention = "fused"
    memory_format: MemoryFormat = "contiguous"
    compile: Compile = "none"
    optimizer: OptimizerKernel = "fused"

    def __str__(self) -> str:
        compiled = "" if self.compile == "none" else f", {self.compile} compiled"
        return f"{self.attention} attention, {self.memory_format}{compiled}, {self.optimizer} AdamW"


@dataclass(frozen=True)
class _Faster:
    """What is remembered of AdamW's kernels."""

    optimizer: OptimizerKernel


@dataclass(frozen=True)
class _Step:
    """What is remembered of a step."""

    seconds: Finite


def use_attention(module: nn.Module, attention: Attention) -> None:
    """timm's attention modules ask themselves, at each call, which kernel to use."""
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = attention == "fused"  # type: ignore[assignment]


def apply(module: nn.Module, kernels: Kernels) -> None:
    """Have ``module`` computed so. The compiler itself starts at the first call."""
    use_attention(module, kernels.attention)
    last = kernels.memory_format == "channels-last"
    module.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    module._compiled_call_impl = None
    if kernels.compile == "model":
        module.compile()
    elif kernels.compile == "cudagraphs":
        module.compile(mode="reduce-overhead")


def check_kernels(config: KernelConfig, device: torch.device) -> None:
    """Raise UsageError where ``device`` has not what ``config`` asks for."""
    if config.compile == "cudagraphs" and device.type != "cuda":
        raise UsageError(f"kernels.compile = cudagraphs needs a CUDA device, this one is {device.type}")


def settle_kernels(
    fabric: Fabric,
    config: KernelConfig,
    module: nn.Module,
    forward: Callable[[int], Any],
    most_images: int,
    planned_images: float,
    facts: dict[str, Any],
    say: Callable[[str], object] = str,
) -> Kernels:
    """Settle what ``config`` leaves open, by measuring ``module`` unless that was done before.

    Args:
        module: on its device; its weights, gradients and running statistics stay as they are.
        forward: calls ``module`` on so many images; the result has a ``loss``.
        most_images: that ``forward`` has.
        planned_images: how many this process will see, which tells whether compiling could pay.
        facts: what else the answer depends on: the model, what is done with it, and the images' size.
        say: is called with what takes a while.

    Raises:
        UsageError: a way that this device does not have.
    """
    device = fabric.device
    on_gpu = device.type == "cuda"
    check_kernels(config, device)
    images = min(TRIAL_IMAGES[on_gpu], most_images)
    told = {name: value for name, value in asdict(config).items() if value != "auto"}
    here = about(device)
    key = here | facts | {"images": images, "told": told, "precision": precision_of(fabric)}

    def seconds(kernels: Kernels) -> float:
        if kernels.compile in ("model", "cudagraphs"):
            say("compiling the model to see whether that pays, once for this device: it can take minutes")
        return _step_seconds(module, partial(forward, images), kernels, fabric.autocast)

    def ask(kind: str, start: Kernels, questions: list[tuple[str, list[str]]]) -> Kernels:
        """The fastest answer to each question."""
        if not questions:
            return start
        about = key | {"start": asdict(start), "questions": questions}

        def measured() -> dict[str, Any]:
            names = " and ".join(name for name, _ in questions)
            say(f"measuring which {names} is fastest, once for this device")
            return asdict(_fastest(start, questions, seconds))

        return Kernels(**remembered(kind, about, measured, Kernels))

    chosen = ask("kernels", replace(Kernels(), **told), _questions(config, module))
    if config.optimizer == "auto":
        chosen = replace(chosen, **remembered("optimizer", here, lambda: _faster_adamw(device), _Faster))
    if config.compile == "auto":
        step = remembered("step", key | asdict(chosen), lambda: {"seconds": seconds(chosen)}, _Step)[
            "seconds"
        ]
        if planned_images / images * step >= COMPILE_PAYS_AFTER:
            ways = ["none", "model", *(["cudagraphs"] if on_gpu else [])]
            chosen = ask("compile", chosen, [("compile", ways)])
    together: Kernels = fabric.broadcast(chosen)
    return together


def _questions(config: KernelConfig, module: nn.Module) -> list[tuple[str, list[str]]]:
    """The questions that measuring can answer, with the usual answer first."""
    questions: list[tuple[str, list[str]]] = []
    if config.attention == "auto" and any(hasattr(part, "fused_attn") for part in module.modules()):
        questions.append(("attention", ["fused", "plain"]))
    convolutions = sum(isinstance(part, nn.Conv2d) for part in module.modules())
    if config.memory_format == "auto" and convolutions > 1:  # one alone embeds patches
        questions.append(("memory_format", ["contiguous", "channels-last"]))
    return questions


def _fastest(
    start: Kernels, questions: list[tuple[str, list[str]]], seconds: Callable[[Kernels], float]
) -> Kernels:
    """One question after the other. A way that fails is not taken."""
    best = start
    for name, (usual, *others) in questions:
        best = _changed(best, {name: usual})
        fastest = seconds(best)
        for other in others:
            candidate = _changed(best, {name: other})
            try:
                took = seconds(candidate)
            except Exception:
                continue
            if took * WORTH_IT < fastest:
                best, fastest = candidate, took * WORTH_IT
    return best


def _changed(kernels: Kernels, answers: dict[str, Any]) -> Kernels:
    return replace(kernels, **answers)


def _step_seconds(
    module: nn.Module,
    forward: Callable[[], Any],
    kernels: Kernels,
    autocast: Callable[[], AbstractContextManager[object]],
) -> float:
    """Seconds of a forward and backward pass, the shortest of a few."""
    times: list[float] = []
    with _undisturbed(module):
        apply(module, kernels)
        while len(times) < 1 + TRIAL_CALLS and sum(times[1:]) < TRIAL_SECONDS:
            module.eval()  # again: some models (LeViT, TinyViT) keep a part of the graph until then
            start = time.perf_counter()
            with autocast():
                loss: Tensor = forward().loss
            loss.backward()  # type: ignore[no-untyped-call]
            loss.item()  # waits for the device
            times.append(time.perf_counter() - start)
            module.zero_grad(set_to_none=True)
    return min(times[1:])


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Within the block the module is in evaluation mode, so that running statistics stay as they are."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
        module.zero_grad(set_to_none=True)


def _faster_adamw(device: torch.device) -> dict[str, Any]:
    """Which kernel of AdamW is faster here."""
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


def checkpoint_activations(model: nn.Module, name: str) -> None:
    """Have each block of ``model`` keep its input only, and compute the rest again in the backward pass.

    Args:
        name: of the model, for the error.

    Raises:
        UsageError: it cannot do that.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"activation_checkpointing: {name} has no set_grad_checkpointing that works, as most of timm's "
            "models have; a smaller micro_batch needs less memory, too"
        ) from error
