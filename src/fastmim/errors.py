"""The errors that a person is meant to read: one line, no traceback unless asked for."""


class FastmimError(Exception):
    """Base of all errors whose message alone tells what went wrong and what would work."""

    exit_code = 1


class UsageError(FastmimError, ValueError):
    """A setting, a path or a file is not one that works; nothing was started."""

    exit_code = 2


class RunError(FastmimError, RuntimeError):
    """A run was started and had to end; what it had written is intact."""
