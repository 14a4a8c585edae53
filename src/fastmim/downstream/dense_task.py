"""What detection and segmentation do alike: a pyramid, jittered crops with annotations, files of a run."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from fastmim.config.transfer import DenseConfig
from fastmim.data.loading.channel_stats import channel_statistics
from fastmim.data.loading.dense import Collate, DenseDataset, DenseLoader, Samples
from fastmim.data.sources.base import ImageSource
from fastmim.downstream.backbone import INNER, PyramidBackbone
from fastmim.downstream.transfer_task import TransferTask
from fastmim.encoders.batch_size import has_batch_norm
from fastmim.train.checkpoint import Choices
from fastmim.train.stages import Stage
from fastmim.train.task import Ended

C = TypeVar("C", bound=DenseConfig)


class AnnotatedImages(Protocol):
    """Images of a source, of which some are used, with notes on where they come from."""

    @property
    def source(self) -> ImageSource: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def take(self, positions: NDArray[np.int64]) -> Self: ...


class DenseTask(TransferTask):
    """Train a model on a feature pyramid.

    Args:
        config: complete settings.
        training: annotated training images.
        backbone: newly built feature pyramid.
    """

    config: DenseConfig

    def __init__(
        self, fabric: Fabric, config: DenseConfig, training: AnnotatedImages, backbone: PyramidBackbone
    ) -> None:
        super().__init__(fabric, config, len(training))
        self.backbone = backbone
        self.mean, self.std = (torch.tensor(v, device=fabric.device) for v in config.jitter.statistics)

    def prepare_dense(self, learner: Any) -> None:
        """See `prepare`; the backbone is that of the pyramid."""
        encoder = self.backbone.encoder
        self.prepare(learner, encoder.model, encoder.model_name, encoder.model_kwargs, INNER)

    def dense_loader(
        self, stage: Stage, choices: Choices, samples: Samples, collate: Collate
    ) -> tuple[DenseLoader, int]:
        """Return the loader of training samples, and the number of loader processes."""
        config = self.config
        workers, stream, share = self.start_loading(stage, choices, samples.source, samples.indices)
        loader = DenseLoader(
            DenseDataset(samples, config.size, config.in_chans, config.jitter.statistics[0]),
            batches=lambda step: stream.batches(stage, step, share.part),
            collate=collate,
            unreadable_log=self.unreadable_log,
            micro_batch=choices.micro_batch,
            workers=workers,
            seed=config.seed,
            share=share,
            mean=self.mean,
            std=self.std,
            avoid_single=has_batch_norm(self.learner.model),
        )
        return loader, workers

    def introduction(self, kind: str) -> str:
        """Return the first line of a run's summary.

        Args:
            kind: kind of model.
        """
        millions = sum(p.numel() for p in self.learner.model.parameters()) / 1e6
        origin = self.backbone.metadata["from"]
        return f"{kind} on {self.backbone_name} from {origin}: {millions:.1f} M parameters"

    def dense_facts(self, training: AnnotatedImages, ended: Ended) -> dict[str, Any]:
        """Return data, length, speed, device, settings and origin of the weights, for results.json."""
        return {
            "training_images": len(training),
            "labels": self.config.labels,
            "data_notes": training.notes,
            **self.facts(ended),
            "encoder": self.backbone.metadata,
            "notes": self.backbone.notes,
        }


def resolve_dense(
    config: C, backbone: PyramidBackbone, training: AnnotatedImages, say: Callable[[str], None]
) -> C:
    """Return ``config`` with the values that follow from encoder and data: statistics, schedule, rates."""
    chans = backbone.encoder.in_chans
    jitter = config.jitter
    if jitter.mean is None:
        mean, std = backbone.mean, backbone.std
        if mean is None or std is None:
            source, seed = training.source, config.split_seed
            mean, std = channel_statistics(jitter, source, chans, config.size, seed, config.max_pixels, say)
        jitter = replace(jitter, mean=mean, std=std)
    return replace(
        config,
        in_chans=chans,
        jitter=jitter,
        schedule=config.known_schedule(len(training)),
        layer_decay=config.known_layer_decay,
    )
