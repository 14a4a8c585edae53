"""`fastmim pretrain`: configuration -> encoder, method, data, loop, proof. Read `run.learn`."""

from fastmim.pretraining.entry import pretrain, run_pretraining
from fastmim.pretraining.run import RUN_FILES, RunResult
from fastmim.pretraining.start import build_method

__all__ = ["RUN_FILES", "RunResult", "build_method", "pretrain", "run_pretraining"]
