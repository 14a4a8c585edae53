"""The `fastmim predict` command."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from fastmim.cli.flags import parse
from fastmim.cli.loading import announce_torch
from fastmim.cli.progress import ShownProgress, print_left_out
from fastmim.downstream.predict_settings import PredictConfig, check_prediction


def run(arguments: list[str]) -> int:
    """Run `fastmim predict` and return its exit code."""

    @dataclass(frozen=True)
    class Command:
        """Write the predictions of a run's model for images."""

        settings: Annotated[PredictConfig, tyro.conf.arg(name="")]
        quiet: bool = False
        """Show no progress."""
        trust_code: bool = False
        """Import and call any factory (package.module:function) that the run's file names.
        Default: only the one given as --model."""

    command = parse(Command, arguments, "fastmim predict", Command(PredictConfig()))
    check_prediction(command.settings)
    announce_torch("predict", command.quiet)
    from fastmim.downstream.predict import predict

    with ShownProgress("predicted", command.quiet) as progress:
        written = predict(command.settings, command.trust_code, progress)
    print_left_out(written.notes, written.unreadable)
    print(f"{written.file}: predictions for {written.images} images")
    return 0
