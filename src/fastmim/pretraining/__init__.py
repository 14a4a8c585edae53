"""Pre-training (`fastmim pretrain`). Read `task`, and `train.run` for the order of events of a run."""

from fastmim.pretraining.build import build_method
from fastmim.pretraining.entry import pretrain, run_pretraining
from fastmim.pretraining.task import RUN_FILES, RunResult

__all__ = ["RUN_FILES", "RunResult", "build_method", "pretrain", "run_pretraining"]
