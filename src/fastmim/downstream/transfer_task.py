"""What all tasks on a pre-trained backbone do alike, whatever they predict."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastmim.config import ALWAYS_FREE, check_resumed
from fastmim.config.transfer import TransferConfig
from fastmim.data.loading.dataset import UnreadableRecord
from fastmim.data.loading.train_loader import Share
from fastmim.data.loading.unreadable import SKIPPED, UnreadableLog
from fastmim.data.sources.base import ImageSource
from fastmim.downstream.averaged import AveragedModel
from fastmim.encoders.batch_size import check_batch
from fastmim.errors import RunError
from fastmim.system.hardware import loader_workers
from fastmim.train.autotune import StepToTune
from fastmim.train.checkpoint import Checkpoint, Choices
from fastmim.train.distributed import hardware
from fastmim.train.kernels import KernelChoices, apply, checkpoint_activations
from fastmim.train.layer_decay import build_layered_adamw, levels_line
from fastmim.train.optim import scaled_lr, use_kernel
from fastmim.train.sampler import InfiniteSampler
from fastmim.train.stages import Stage, build_plan
from fastmim.train.task import Ended, StageSetup, Task
from fastmim.weights.encoder_file import encoder_digest
from fastmim.weights.spec import SCRATCH

TRIAL_IMAGES = 64  # at most
FEW_STEPS = 200  # below this, the user is warned


class TransferTask(Task):
    """Train a model on a backbone, in a single stage, with layer-wise learning rates.

    A task calls `prepare` at the end of its constructor.
    """

    learner: AveragedModel
    optimizer: torch.optim.AdamW
    backbone_name: str
    """Name of the backbone, for messages."""
    backbone_kwargs: dict[str, Any]
    trial_images: int = TRIAL_IMAGES

    def __init__(self, fabric: Fabric, config: TransferConfig, images: int) -> None:
        self.fabric = fabric
        self.config = config
        self.run = Path(config.out)
        self.plan = build_plan(config.planned_stages, images, config.batch_size, config.micro_batch)

    def prepare(
        self,
        learner: AveragedModel,
        backbone: nn.Module,
        name: str,
        kwargs: dict[str, Any],
        inner: str = "",
    ) -> None:
        """Check the smallest batch, put the model on its device, and build the optimiser.

        Args:
            learner: the model in training.
            backbone: the backbone in it.
            name, kwargs: its name and arguments.
            inner: name of the backbone in ``learner.model``; empty if that is the backbone.
        """
        config, (stage,) = self.config, self.plan.stages
        share = stage.batch_size // self.fabric.world_size
        check_batch(learner.model, name, stage.image_size, config.in_chans, share, stage.micro_batch)
        self.backbone_name, self.backbone_kwargs = name, kwargs
        if inner and self.fabric.world_size > 1 and self.fabric.device.type == "cuda":
            synchronise_norms(learner.model, inner)
        self.learner = learner.to(self.fabric.device)
        self.optimizer = build_layered_adamw(
            learner.model, config.known_layer_decay, config.optim, config.layer_decay_blocks, inner
        )
        if config.activation_checkpointing:
            checkpoint_activations(backbone, name)

    @abstractmethod
    def data_digest(self) -> str:
        """Return a digest of the images and their annotations."""

    @abstractmethod
    def noise(self, count: int) -> tuple[Any, ...]:
        """Return arguments of the module for a trial step of ``count`` images."""

    def identity(self) -> dict[str, str]:
        """Return digests of the annotated images and of the initial weights."""
        return {
            "data_digest": self.data_digest(),
            "encoder_digest": encoder_digest(self.config.encoder),
        }

    def check_resumable(self, checkpoint: Checkpoint) -> None:
        """Raise UsageError unless settings, images and weights are those that the run started with."""
        free = ALWAYS_FREE if self.config.encoder == SCRATCH else ALWAYS_FREE | {"model"}  # its file names it
        check_resumed(self.config, free, checkpoint.identity, self.identity())

    def enter(self, stage: Stage, say: Callable[[str], None]) -> StageSetup:
        """Return the newly built model and its optimiser; a run has a single stage."""
        self.say = say
        world = self.fabric.world_size
        return StageSetup(
            self.learner,
            self.optimizer,
            StepToTune(
                self.learner,
                self.noise,
                min(self.trial_images, max(1, stage.batch_size // world)),
                self.plan.total_steps * stage.batch_size / world,
                {
                    "model": self.backbone_name,
                    "arguments": repr(self.backbone_kwargs),
                    "size": list(stage.image_size),
                    **self.trial_key(),
                },
            ),
            use=self._use,
            forward=lambda count: self.learner(*self.noise(count)),
        )

    def trial_key(self) -> dict[str, Any]:
        """Return what else decides which kernels are fastest."""
        return {}

    def noise_images(self, count: int) -> Tensor:
        """Return images (count, C, H, W) of noise, on the CPU."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, self.config.in_chans, *self.config.size, generator=generator)

    def _use(self, kernels: KernelChoices) -> None:
        apply(self.learner, kernels)
        use_kernel(self.optimizer, kernels.optimizer)

    def start_loading(
        self, stage: Stage, choices: Choices, source: ImageSource, indices: NDArray[Any]
    ) -> tuple[int, InfiniteSampler, Share]:
        """Open the log of unreadable images; return loader processes, order, and this process's share."""
        config, world = self.config, self.fabric.world_size
        self.choices = choices
        self.unreadable_log = UnreadableLog(self.run / SKIPPED, len(source), config.max_unreadable)
        return (
            loader_workers(config.workers, world // config.num_nodes),
            InfiniteSampler(indices, config.seed),
            Share.of(stage.batch_size, self.fabric.global_rank, world),
        )

    def progress_line(self, stage: Stage, choices: Choices) -> Iterator[str]:
        """Yield lines about batch, precision, kernels, and the learning rate of each layer."""
        total = self.plan.total_steps
        yield (
            f"batch {stage.batch_size} as {self.fabric.world_size} x {choices.micro_batch} on "
            f"{self.fabric.device.type} in {choices.precision}, {choices.kernels}"
        )
        yield (
            f"peak lr {scaled_lr(self.config.optim.base_lr, stage.batch_size):.3g}, {total} steps; "
            + levels_line(self.optimizer.param_groups, self.config.known_layer_decay)
        )
        if total < FEW_STEPS:
            yield f"only {total} steps: raise --epochs or --steps to train longer"

    def after_step(self) -> None:
        """Update the moving average of the weights."""
        self.learner.after_step()

    def facts(self, ended: Ended) -> dict[str, Any]:
        """Return length, speed, device and settings of the run, for results.json."""
        config, (steps, seconds) = self.config, (ended.progress.step, ended.progress.seconds)
        return {
            "unreadable_training": len(self.unreadable_log.skipped),
            "micro_batch": self.choices.micro_batch,
            "epochs": self.plan.total_epochs,
            "steps": steps,
            "seconds": seconds,
            "images_per_second": steps * config.batch_size / seconds if seconds else None,
            **hardware(self.fabric),
            "precision": self.choices.precision,
            "image_size": list(config.size),
            "seed": config.seed,
        }

    def say_unreadable(self, in_validation: int, say: Callable[[str], None]) -> None:
        """Say how many images were left out, if any."""
        if broken := len(self.unreadable_log.skipped) + in_validation:
            say(
                f"{broken} unreadable images were left out, {in_validation} of them in validation: "
                f"{self.run / SKIPPED} lists the training images"
            )


def synchronise_norms(model: nn.Module, backbone: str) -> None:
    """Let the batch norms of ``model`` outside its ``backbone`` use the statistics of all processes.

    A process often has one or two images, too few for the statistics of a new head. PyTorch has such norms
    for CUDA only.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, _BatchNorm) and not name.startswith(f"{backbone}."):
            parent, _, leaf = name.rpartition(".")
            shared = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
            setattr(model.get_submodule(parent), leaf, shared)


def check_readable(unreadable: int, example: UnreadableRecord | None, images: int, limit: float) -> None:
    """Raise RunError if more than the share ``limit`` of the validation images could not be read."""
    if unreadable > limit * images:
        shown = f"; one is {example.name}: {example.reason}" if example else ""
        raise RunError(
            f"{unreadable} of {images} validation images cannot be read, more than max_unreadable = "
            f"{limit:g} allows{shown}"
        )
