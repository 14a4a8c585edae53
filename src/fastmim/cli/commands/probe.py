"""The `fastmim probe` command."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from fastmim.cli.flags import parse
from fastmim.downstream.frozen.settings import ProbeConfig, check_probe


def run(arguments: list[str]) -> int:
    """Run `fastmim probe` and return its exit code."""

    @dataclass(frozen=True)
    class Command:
        """Classify frozen features: linear, nearest neighbours (knn) or attentive.

        Masked image modelling scores low under a probe, most of all under knn, and still fine-tunes well:
        never choose a backbone by a probe; use `fastmim payoff`.
        """

        settings: Annotated[ProbeConfig, tyro.conf.arg(name="")]
        json: bool = False
        """Print one JSON object, with the accuracy of each class."""
        trust_code: bool = False
        """Import and call any factory (package.module:function) that a file names.
        Default: only the one given as --model."""

    # Parse and check the flags, before torch is loaded.
    command = parse(Command, arguments, "fastmim probe", Command(ProbeConfig()))
    config = command.settings
    check_probe(config)
    from fastmim.downstream.frozen.probe import run_probe

    # Run the probe and print its result.
    result = run_probe(config, trust_code=command.trust_code)
    accuracy = result.accuracy
    if command.json:
        found = {
            "kind": config.kind,
            "encoder": config.encoder,
            "top1": accuracy.top1,
            "top5": accuracy.top5,
            "mean_class_top1": accuracy.mean_class_top1,
            "training_images": result.training_images,
            "images": int(accuracy.images.sum()),
            "unreadable": len(result.unreadable),
            "note": result.note,
            "data_notes": result.data_notes,
            "settings": asdict(config),
            "per_class": accuracy.per_class(result.classes),
        }
        print(json.dumps(found))
        return 0
    for note in result.data_notes:
        print(f"data: {note}")
    print(
        f"{config.kind} probe ({result.note}) on {result.training_images} labelled images: "
        f"top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} % of {int(accuracy.images.sum())} images"
    )
    if result.unreadable:
        first = result.unreadable[0]
        print(
            f"{len(result.unreadable)} unreadable images were left out; the first is {first.name}: "
            f"{first.reason}"
        )
    return 0
