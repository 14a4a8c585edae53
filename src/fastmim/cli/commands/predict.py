"""The `fastmim predict` command."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from fastmim.cli.flags import parse
from fastmim.downstream.predict_settings import PredictConfig, check_prediction

SHOWN = 5


def run(arguments: list[str]) -> int:
    """Run `fastmim predict` and return its exit code."""

    @dataclass(frozen=True)
    class Command:
        """Write the predictions of a run's model for images."""

        settings: Annotated[PredictConfig, tyro.conf.arg(name="")]
        trust_code: bool = False
        """Import and call any factory (package.module:function) that the run's file names.
        Default: only the one given as --model."""

    command = parse(Command, arguments, "fastmim predict", Command(PredictConfig()))
    check_prediction(command.settings)
    from fastmim.downstream.predict import predict

    written = predict(command.settings, command.trust_code)
    for note in written.notes:
        print(f"data: {note}")
    for line in written.unreadable[:SHOWN]:
        print(f"left out: {line}")
    if len(written.unreadable) > SHOWN:
        print(f"left out: {len(written.unreadable) - SHOWN} more")
    print(f"{written.file}: predictions for {written.images} images")
    return 0
