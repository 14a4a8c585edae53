"""The errors that a person is meant to read: one line, no traceback unless asked for."""

import os
import signal


class FastmimError(Exception):
    """Base of all errors whose message alone tells what went wrong and what would work."""

    exit_code = 1


class UsageError(FastmimError, ValueError):
    """A setting, a path or a file is not one that works; nothing was started."""

    exit_code = 2


class RunError(FastmimError, RuntimeError):
    """A run was started and had to end; what it had written is intact."""


class Interrupted(KeyboardInterrupt):
    """A signal ends what is going on at once. No error: code that catches errors lets it pass."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int]]:
        return Interrupted, (self.number,)


class StoppedError(RunError):
    """A signal ended what was going on, where no run of its own can say so."""

    def __init__(self, number: int, where: str = "before the first step") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {where}")
        self.number = number
        self.where = where
        self.exit_code = 128 + number

    def __reduce__(self) -> tuple[type["StoppedError"], tuple[int, str]]:
        return StoppedError, (self.number, self.where)


def why(error: OSError) -> str:
    """The system's words for what went wrong, where pyarrow has put words of its own around them."""
    return os.strerror(error.errno) if error.errno else error.strerror or str(error)


def printable(text: str) -> str:
    """Text in which what a terminal would obey, or a name that is no Unicode, is written out."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
