"""From an encoder to a classifier: whose weights it has, what it pools, which layers learn faster."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.optim._param_groups import param_groups_layer_decay
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from fastmim.config import FinetuneConfig
from fastmim.config.finetune import SCRATCH, WITH_TIMM_WEIGHTS
from fastmim.encoders.adapter import Encoder
from fastmim.encoders.build import build_encoder, name_of
from fastmim.encoders.levels import parameter_levels
from fastmim.encoders.registry import arguments_of, check_model_name, create, weights_tag, without_memory
from fastmim.encoders.trust import Trust
from fastmim.errors import UsageError
from fastmim.train.optim import OptimConfig
from fastmim.weights.load import (
    Loaded,
    as_size,
    check_encoder,
    load_with,
    read_encoder,
    replace_classifier,
    timm_weights,
)


@dataclass(frozen=True)
class Start:
    """What fine-tuning starts from."""

    model: nn.Module
    """Images (B, C, H, W) -> logits (B, classes)."""
    name: str
    kwargs: dict[str, Any]
    """What rebuilds the model, with its classifier."""
    origin: dict[str, Any]
    """Where the weights come from."""
    in_chans: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    """Of the images that the weights know; None: nothing is known yet."""
    notes: list[str] = field(default_factory=list)
    """What a person should know about it."""


class PooledClassifier(nn.Module):
    """Mean of a backbone's last features, layer norm, linear: for modules that have no classifier."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(encoder.width)
        self.head = nn.Linear(encoder.width, classes)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images_BCHW: Tensor) -> Tensor:
        features_BD = self.encoder(images_BCHW).mean((2, 3))
        logits: Tensor = self.head(self.norm(features_BD))
        return logits


RGB = 3  # channels, unless they are told


class Step(NamedTuple):
    """What the loop needs of a micro-batch."""

    loss: Tensor


class Learner(nn.Module):
    """The classifier in training, its loss, and the running mean of its weights where that is wanted."""

    def __init__(self, model: nn.Module, ema: float | None) -> None:
        super().__init__()
        self.model = model
        self.mean: ModelEmaV3 | None = None
        self.steps = 0  # that the mean has taken in
        if ema is not None:
            self.mean = ModelEmaV3(model, decay=ema, use_warmup=True).requires_grad_(False)

    def forward(self, images_BCHW: Tensor, targets_BK: Tensor) -> Step:
        """Cross-entropy with soft targets (B, classes)."""
        return Step(F.cross_entropy(self.model(images_BCHW).float(), targets_BK))

    @property
    def best(self) -> nn.Module:
        """What is measured and exported."""
        return self.model if self.mean is None else self.mean.module

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the running mean take in the weights after each step; early on it forgets faster."""
        if self.mean is not None:
            optimizer.register_step_post_hook(lambda *_: self._take_in())

    def _take_in(self) -> None:
        assert self.mean is not None
        self.steps += 1
        self.mean.update(self.model, step=self.steps)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = int(state)


def build_classifier(config: FinetuneConfig, classes: int, module: nn.Module | None = None) -> Start:
    """The classifier that ``config`` asks for, at its image size; new weights are torch's next random ones.

    Args:
        module: of one's own: what config.model names, or what the encoder's file was pre-trained as.

    Raises:
        UsageError: there are no such weights, or the model does not take them or the size.
    """
    if config.encoder == SCRATCH:
        start = _from_scratch(config, classes, module)
    elif config.encoder.startswith(WITH_TIMM_WEIGHTS):
        start = _from_timm(config, classes)
    else:
        start = _from_file(config, classes, module)
    head = start.model.get_classifier()  # type: ignore[operator]
    if isinstance(head, nn.Linear) and config.known_head_std:
        nn.init.trunc_normal_(head.weight, std=config.known_head_std)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    start.model.requires_grad_(True)
    return start


def _from_file(config: FinetuneConfig, classes: int, module: nn.Module | None) -> Start:
    origin, state = read_encoder(config.encoder)
    if config.in_chans not in (RGB, origin["in_chans"]):
        raise UsageError(f"in_chans = {config.in_chans}: the encoder was trained on {origin['in_chans']}")
    trust = Trust.of(config.model)
    changes: dict[str, Any] = {}
    notes: list[str] = []
    if module is None:
        check_encoder(origin, state, config.encoder, trust)
        changes, notes = _changes(config, origin["model"], origin.get("full_kwargs") or origin["kwargs"])
    loaded = load_with(config.encoder, changes, config.size, module, trust)
    return _with_classifier(config, loaded, classes, notes)


def _from_timm(config: FinetuneConfig, classes: int) -> Start:
    name = config.encoder.removeprefix(WITH_TIMM_WEIGHTS)
    check_model_name(name)
    changes, notes = _changes(config, name, {})
    return _with_classifier(config, timm_weights(name, changes, config.size), classes, notes)


def _from_scratch(config: FinetuneConfig, classes: int, module: nn.Module | None) -> Start:
    name = config.model or ""
    origin = {"model": name, "in_chans": config.in_chans, "mean": None, "std": None}
    if module is not None:
        loaded = Loaded(module, name_of(module), {}, origin, config.size, [], [])
        return _with_classifier(config, loaded, classes, [])
    check_model_name(name)
    changes, notes = _changes(config, name, config.model_kwargs)
    if tag := weights_tag(name):
        notes.append(f"random weights, not timm's {tag}: --encoder timm:{name} takes those")
    # Through the encoder, so that its position embedding starts as that of pre-training does.
    encoder = build_encoder(name, config.size, config.in_chans, {**config.model_kwargs, **changes})
    loaded = Loaded(encoder.model, name, encoder.model_kwargs, origin, config.size, [], [])
    return _with_classifier(config, loaded, classes, notes)


def _with_classifier(config: FinetuneConfig, loaded: Loaded, classes: int, notes: list[str]) -> Start:
    model, kwargs, origin = loaded.model, loaded.kwargs, loaded.origin
    if hasattr(model, "reset_classifier") and hasattr(model, "get_classifier"):
        replace_classifier(loaded, classes)
        kwargs = {**kwargs, "num_classes": classes}
    else:
        encoder = Encoder(model, loaded.name, kwargs, loaded.size, origin["in_chans"])
        model = PooledClassifier(encoder, classes)
    if loaded.fresh:
        notes.append(f"newly initialised: {', '.join(loaded.fresh)}")
    if loaded.left_out:
        notes.append(f"not used: {', '.join(loaded.left_out)}, as the classifier sees {config.pool}")
    source = {"from": config.encoder, **origin}
    trained_at = origin.get("image_size")
    if trained_at is not None and as_size(trained_at) != config.size:
        height, width = config.size
        notes.append(f"trained at {trained_at[0]}x{trained_at[1]} pixels, here {height}x{width}")
    return Start(
        model,
        loaded.name,
        kwargs,
        source,
        origin["in_chans"],
        _floats(origin["mean"]),
        _floats(origin["std"]),
        notes,
    )


def _floats(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def _changes(config: FinetuneConfig, name: str, kwargs: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Drop path and pooling as arguments of the model, where it takes them."""
    plain = {key: value for key, value in kwargs.items() if key != "img_size"}
    shape = without_memory(partial(create, name, plain))
    takes = arguments_of(name, shape)
    changes: dict[str, Any] = {}
    notes = []
    if "drop_path_rate" in takes:
        changes["drop_path_rate"] = config.drop_path
    elif config.drop_path:
        notes.append(f"{name} has no drop path: drop_path = {config.drop_path} is left out")
    chooses = getattr(shape, "global_pool", None) in ("avg", "token") and "global_pool" in takes
    if config.pool != "model" and chooses and getattr(shape, "num_prefix_tokens", 0) > 0:
        changes["global_pool"] = config.pool
    elif config.pool == "token":
        raise UsageError(f"pool = token: {name} has no class token to choose; give pool = avg")
    return changes, notes


class _Levelled:
    """A model as timm's parameter groups see it, with levels of ours."""

    def __init__(self, model: nn.Module, levels: dict[str, int]) -> None:
        self.named_parameters = model.named_parameters
        self._levels = levels

    def group_matcher(self, coarse: bool) -> Callable[[str], int]:
        return lambda name: self._levels.get(name, 0)  # what does not train has no level


def layer_decay_groups(
    model: nn.Module, layer_decay: float, optim: OptimConfig, blocks: int = 1
) -> list[dict[str, Any]]:
    """Parameters by layer, the last ones with the full learning rate (paper: appendix A.3.2, table 12).

    A layer is a block (`encoders.levels`), or so many ``blocks`` in a row; of a model in which none can be
    told, twelve tensors in a row count as one, as timm has it.
    """
    undecayed: Iterable[str] = getattr(model, "no_weight_decay", set)()
    levels = parameter_levels(model, blocks)
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        model if levels is None else cast(nn.Module, _Levelled(model, levels)),
        optim.weight_decay,
        no_weight_decay_list=tuple(undecayed),
        layer_decay=layer_decay,
    )
    return groups


def levels_line(groups: list[dict[str, Any]], layer_decay: float) -> str:
    """How learning rates are spread over the layers, in words."""
    scales = sorted({group["lr_scale"] for group in groups})
    if len(scales) == 1:
        return "all layers learn equally fast"
    return (
        f"layer decay {layer_decay:g}: {len(scales)} levels, rates from {scales[0]:.2g} to 1 of the full one"
    )


def build_layered_adamw(
    model: nn.Module, layer_decay: float, optim: OptimConfig, blocks: int = 1
) -> torch.optim.AdamW:
    """AdamW whose groups carry ``lr_scale``, which `train.optim.guarded_step` heeds."""
    groups = layer_decay_groups(model, layer_decay, optim, blocks)
    return torch.optim.AdamW(groups, lr=optim.base_lr, betas=optim.betas, fused=True)
