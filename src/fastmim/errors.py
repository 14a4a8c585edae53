"""The errors that a person is meant to read: one line, no traceback unless asked for."""

import signal


class FastmimError(Exception):
    """Base of all errors whose message alone tells what went wrong and what would work."""

    exit_code = 1


class UsageError(FastmimError, ValueError):
    """A setting, a path or a file is not one that works; nothing was started."""

    exit_code = 2


class RunError(FastmimError, RuntimeError):
    """A run was started and had to end; what it had written is intact."""


class StoppedError(RunError):
    """A signal ended the run before its first step, so that there is nothing to go on with."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} before the first step")
        self.exit_code = 128 + number
