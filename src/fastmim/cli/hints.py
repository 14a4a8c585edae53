"""Suggestions for wrong flags: names from other tools, and values without a flag."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

# Names of a flag in other tools -> its possible names here, of which a verb has one.
ALIASES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("d", "i", "dataset", "dataset-dir", "data-dir", "data-path", "data-root"): ("data",),
    ("dir", "folder", "images", "input", "input-dir", "root", "src", "train-dir"): ("data",),
    ("o", "output", "output-dir", "out-dir", "outdir", "save", "save-dir", "log-dir", "logdir"): ("out",),
    ("dest", "destination", "run", "run-dir", "workdir", "work-dir"): ("out",),
    ("lr", "blr", "learning-rate", "base-lr"): ("optim.base-lr", "base-lr", "centre-lr"),
    ("wd", "weight-decay"): ("optim.weight-decay",),
    ("clip-grad", "grad-clip", "clip-norm"): ("optim.clip-norm",),
    ("min-lr",): ("schedule.min-lr",),
    ("warmup", "warmup-epochs"): ("schedule.warmup-epochs",),
    ("sched", "scheduler"): ("schedule.name",),
    ("mask-ratio", "masking-ratio", "ratio"): ("mask.ratio",),
    ("mask-size", "mask-patch-size"): ("mask.size",),
    ("loss",): ("target.loss",),
    ("decoder-depth", "decoder-layers"): ("decoder.depth",),
    ("decoder-width", "decoder-dim", "decoder-embed-dim"): ("decoder.width",),
    ("layer-wise-lr-decay", "llrd"): ("layer-decay",),
    ("mixup-alpha",): ("augment.mixup",),
    ("cutmix-alpha",): ("augment.cutmix",),
    ("reprob",): ("augment.erase",),
    ("e", "epoch", "num-epochs", "max-epochs"): ("epochs",),
    ("iters", "iterations", "max-steps", "num-steps"): ("steps",),
    ("b", "bs", "batch", "batchsize"): ("batch-size",),
    ("accum", "accum-iter", "gradient-accumulation", "grad-accum"): ("micro-batch",),
    ("img-size", "imgsz", "input-size", "res", "resolution", "size"): ("image-size",),
    ("m", "arch", "architecture", "backbone", "model-name", "net", "network"): ("model",),
    ("checkpoint", "ckpt", "finetune", "init", "pretrained", "weights"): ("encoder",),
    ("teacher",): ("distill.teacher",),
    ("j", "num-workers", "n-workers"): ("workers", "processes"),
    ("gpus", "gpu", "n-gpus", "num-gpus", "ngpu", "nproc"): ("devices", "accelerator"),
    ("device", "cuda"): ("accelerator",),
    ("amp", "bf16", "fp16"): ("precision",),
    ("c", "cfg", "config-file"): ("config",),
    ("q", "silent"): ("quiet",),
    ("f", "force"): ("overwrite",),
    ("continue", "resume-from"): ("resume",),
}
CALLED = {alias: names for aliases, names in ALIASES.items() for alias in aliases}


def flags_of(form: Any, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield each flag of a command's dataclass without its dashes, and whether it is a switch."""
    hints = get_type_hints(form, include_extras=True)
    for item in fields(form):
        kind, name = hints[item.name], item.name.replace("_", "-")
        for mark in get_args(kind)[1:] if get_origin(kind) is Annotated else ():
            given = getattr(mark, "name", None)
            name = name if given is None else given
        kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        if is_dataclass(kind):
            yield from flags_of(kind, f"{prefix}{name}." if name else prefix)
        else:
            yield f"{prefix}{name}", kind is bool


def hint(arguments: Sequence[str], unknown: Sequence[str], flags: Mapping[str, bool]) -> str | None:
    """Return a suggestion, as the end of an error message; None if there is none.

    Args:
        unknown: the words among ``arguments`` that no flag accepts.
        flags: as given by `flags_of`.
    """
    given = {_name(word) for word in arguments if word.startswith("-")}
    for word in unknown:
        if word.startswith("-"):
            known = [name for name in CALLED.get(_name(word), ()) if name in flags]
            return f"did you mean --{known[0]}?" if known else None
    for before, word in zip(("", *arguments), arguments, strict=False):
        if word not in unknown:
            continue
        if word == "help":
            return "did you mean --help?"
        if flags.get(_name(before), False):
            return f"{before} is a switch, which takes no value"
        meant = [f"--{name} {word}" for name in ("encoder", "data") if name in flags and name not in given]
        return f"did you mean {' or '.join(meant)}?" if meant else None
    return None


def _name(word: str) -> str:
    return word.lstrip("-").partition("=")[0].replace("_", "-").lower()
