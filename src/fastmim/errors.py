"""Errors with one-line messages for the user; tracebacks are shown on request only."""

import os
import signal


class FastmimError(Exception):
    """Base class of errors whose message states the cause and a remedy."""

    exit_code = 1


class UsageError(FastmimError, ValueError):
    """A setting, a path or a file is invalid; nothing was started."""

    exit_code = 2


class RunError(FastmimError, RuntimeError):
    """A run was started and failed; the files written so far are intact."""


class Interrupted(KeyboardInterrupt):
    """A signal ends the current work at once. Not an Exception, so that error handlers let it pass."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int]]:
        return Interrupted, (self.number,)


class StoppedError(RunError):
    """A signal ended the work, and no run was open that could report it."""

    def __init__(self, number: int, where: str = "before the first step") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {where}")
        self.number = number
        self.where = where
        self.exit_code = 128 + number

    def __reduce__(self) -> tuple[type["StoppedError"], tuple[int, str]]:
        return StoppedError, (self.number, self.where)


def why(error: OSError) -> str:
    """Return the operating system's message for an error, without pyarrow's additions."""
    return os.strerror(error.errno) if error.errno else error.strerror or str(error)


def printable(text: str) -> str:
    """Escape control characters and invalid Unicode in a text for the terminal."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if there is no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
