"""Compute the teacher's features for training, or read them from a cache.

Crops are a function of (seed, step, position in the batch), so a cache is exact for runs that draw the same
crops: those with the same data, seed, batch size and image size. It allows several students or settings to be
trained on features that were computed once.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from lightning_fabric import Fabric
from torch import Tensor

from fastmim.errors import RunError, UsageError
from fastmim.methods.distillation import Distilled
from fastmim.methods.frozen_teacher import Teacher
from fastmim.pretraining.evaluation import HeldOut
from fastmim.pretraining.teacher import TeacherSetup
from fastmim.system.files import write_atomically
from fastmim.train.stages import Stage
from fastmim.train.task import Loader, MicroBatch

RESERVE = 2 << 30  # bytes of disk space that a cache leaves free for checkpoints
PER_FOLDER = 1000  # steps
PIXEL_STEP = 7  # stride along each side of the pixels that `crops_digest` hashes
KEY = "key.json"

Say = Callable[[str], None]


class FeatureCache:
    """Maps of micro-batches on disk, one file each, in a folder named after a hash of ``key``.

    Files are written atomically, and are read only if they belong to identical crops. When the disk is full,
    the cache prints one line and stores nothing more; the run continues.

    Args:
        folder: parent folder of all caches.
        key: settings and digests that the maps depend on, apart from the micro-batch.
        say: prints a line.
    """

    def __init__(self, folder: str, key: Mapping[str, Any], say: Say) -> None:
        text = json.dumps(key, indent=2, sort_keys=True)
        self.folder = Path(folder).expanduser() / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.say = say
        self.writes = True
        make_folder(self.folder)
        try:
            write_atomically(self.folder / KEY, lambda file: file.write(text.encode() + b"\n"))
        except RunError as error:
            self._stop(str(error))

    def get(self, label: str, images_BCHW: Tensor) -> list[Tensor] | None:
        """Return the stored maps of these crops, or None."""
        try:
            with safetensors.safe_open(self._file(label), framework="pt") as opened:
                if (opened.metadata() or {}).get("crops") != crops_digest(images_BCHW):
                    return None
                maps = [opened.get_tensor(name) for name in sorted(opened.keys())]
        except (safetensors.SafetensorError, OSError):
            return None
        return [map_.to(images_BCHW.device, non_blocking=True) for map_ in maps]

    def put(self, label: str, images_BCHW: Tensor, maps: list[Tensor]) -> None:
        """Store the maps of these crops if there is enough disk space."""
        if not self.writes:
            return
        size = sum(map_.numel() * map_.element_size() for map_ in maps)
        if shutil.disk_usage(self.folder).free - size < RESERVE:
            self._stop(f"less than {bytes_text(RESERVE)} would be free in {self.folder}")
            return
        named = {f"{number:03d}": map_.cpu().contiguous() for number, map_ in enumerate(maps)}
        content = safetensors.torch.save(named, metadata={"crops": crops_digest(images_BCHW)})
        file = self._file(label)
        try:
            file.parent.mkdir(exist_ok=True)
            write_atomically(file, lambda opened: opened.write(content))
        except RunError as error:
            self._stop(str(error))
        except OSError as error:
            self._stop(f"cannot write {file.parent}: {error.strerror}")

    def _file(self, label: str) -> Path:
        step, _, _ = label.partition("-")
        group = f"{int(step) // PER_FOLDER:06d}" if step.isdigit() else "other"
        return self.folder / group / f"{label}.safetensors"

    def _stop(self, reason: str) -> None:
        self.writes = False
        self.say(f"distill.cache: no more features are stored: {reason}")


class TeacherFeatures:
    """Feature maps of the teacher, read from the cache or computed.

    Args:
        teacher: on the device.
        autocast: context of the training precision.
        cache: None: the maps are always computed.
    """

    def __init__(
        self,
        teacher: Teacher,
        autocast: Callable[[], AbstractContextManager[object]],
        cache: FeatureCache | None,
    ) -> None:
        self.teacher = teacher
        self.autocast = autocast
        self.cache = cache

    def __call__(self, images_BCHW: Tensor, label: str) -> list[Tensor]:
        """Return maps (B, D, h, w), half precision; ``label`` is the name of these images in the cache."""
        maps = self.cache.get(label, images_BCHW) if self.cache is not None else None
        if maps is not None and not self._are_the_teachers(maps, len(images_BCHW)):
            maps = None
        if maps is None:
            with self.autocast():
                maps = self.teacher(images_BCHW)
            if self.cache is not None:
                self.cache.put(label, images_BCHW, maps)
        return maps

    def _are_the_teachers(self, maps: list[Tensor], count: int) -> bool:
        """Check that maps from a file have the shapes and dtypes for ``count`` images, and are finite."""
        forms = [(map_.shape, map_.dtype) for map_ in maps]
        return forms == [(map_.shape, map_.dtype) for map_ in self.teacher.blank(count)] and all(
            bool(torch.isfinite(map_).all()) for map_ in maps
        )


def with_teacher_features(feed: Loader, teacher_features: TeacherFeatures, first: int) -> Loader:
    """Append the teacher's maps to the images and masks of each micro-batch of ``feed``.

    Args:
        first: position of this process's first image in the whole batch.
    """

    def with_lessons(micro_batches: Iterable[MicroBatch], step: int) -> Iterator[MicroBatch]:
        place = first
        for (images, *beside), count in micro_batches:
            maps = teacher_features(images, f"{step:09d}-{place}")
            yield (images, *beside, *maps), count
            place += count

    def feed_with_lessons(first_step: int) -> Iterator[Iterable[MicroBatch]]:
        for step, micro_batches in enumerate(feed(first_step), first_step):
            yield with_lessons(micro_batches, step)

    return feed_with_lessons


def build_teacher_features(
    fabric: Fabric,
    folder: str | None,
    teacher_setup: TeacherSetup,
    stage: Stage,
    drawn: dict[str, Any],
    say: Say,
) -> TeacherFeatures:
    """Set up the teacher's features for a stage, with a cache in ``folder`` if it is given.

    Args:
        drawn: all values that the crops and the teacher's features depend on, apart from teacher and stage.
    """
    teacher, cache = teacher_setup.teacher, None
    if folder is not None:
        key = {
            **drawn,
            "leg": [stage.image_size, stage.batch_size, stage.first_step, stage.first_sample],
            "teacher": [teacher.encoder.model_name, teacher.encoder.model_kwargs, teacher.encoder.image_size],
            "maps": [teacher.layers, teacher.shapes],
        }
        cache = FeatureCache(folder, key, say)
        images = (stage.last_step - stage.first_step) * stage.batch_size
        say(estimate(cache.folder, teacher.bytes_per_image, images))
    return TeacherFeatures(teacher, fabric.autocast, cache)


def measure_both(
    held_out: HeldOut, learner: Distilled, teacher_features: TeacherFeatures, say: Say
) -> dict[str, float]:
    """Return the losses of `HeldOut.measure` and the held-out distillation loss; print both."""
    losses = held_out.measure(say)
    distillation = held_out_distillation(learner, held_out, teacher_features)
    say(f"held-out distillation loss {distillation:.4f}")
    return {**losses, "held_out_distillation_loss": distillation}


@torch.no_grad()
def held_out_distillation(learner: Distilled, held_out: HeldOut, teacher_features: TeacherFeatures) -> float:
    """Return the mean distillation loss on the held-out images with their fixed masks."""
    was_training = learner.training
    learner.eval()
    total, start = torch.zeros((), device=held_out.images.device), 0
    for images, mask in zip(
        torch.split(held_out.images, held_out.micro_batch),
        torch.split(held_out.mask, held_out.micro_batch),
        strict=True,
    ):
        maps = teacher_features(images, f"held_out-{start}")
        with held_out.autocast():
            result = learner(images, mask, *maps)
        total += result.distillation * (len(images) / len(held_out.images))
        start += len(images)
    learner.train(was_training)
    return float(total)


def make_folder(folder: Path) -> None:
    """Create the folder of a cache. Raises UsageError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"distill.cache: {folder} cannot be created: {error.strerror}") from error


def crops_digest(images_BCHW: Tensor) -> str:
    """Hash a subset of the pixels, to verify that crops with the same name are identical."""
    some = images_BCHW[:, :, ::PIXEL_STEP, ::PIXEL_STEP].float().cpu().contiguous()
    digest = hashlib.sha256(str(tuple(images_BCHW.shape)).encode())
    digest.update(some.numpy().tobytes())
    return digest.hexdigest()[:16]


def estimate(folder: Path, bytes_per_image: int, images: int) -> str:
    """Describe the disk space that a cache needs, in one line."""
    each, all_, free = (
        bytes_text(count)
        for count in (bytes_per_image, bytes_per_image * images, shutil.disk_usage(folder).free)
    )
    return f"distill.cache: {each} an image, up to {all_} for {images} images in {folder}; {free} are free"


def bytes_text(count: int) -> str:
    """Format a number of bytes: 1536 -> 1.5 KiB."""
    power = min(int(math.log2(max(count, 1)) // 10), 5)
    return f"{count / 2 ** (10 * power):.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[power]}"
