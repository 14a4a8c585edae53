"""Verbs of the command line; each module has ``run(arguments) -> exit code``."""
