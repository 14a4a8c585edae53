"""`fastmim pretrain`: configuration -> encoder, method, data, loop, proof. Read `task` and `train.run`."""

from fastmim.pretraining.build import build_method
from fastmim.pretraining.entry import pretrain, run_pretraining
from fastmim.pretraining.task import RUN_FILES, RunResult

__all__ = ["RUN_FILES", "RunResult", "build_method", "pretrain", "run_pretraining"]
