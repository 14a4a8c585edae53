"""Configuration of runs: one dataclass per command; functions that read, merge and write settings."""

from fastmim.config.detect import DetectConfig
from fastmim.config.engine import launch, run_settings
from fastmim.config.finetune import FinetuneConfig
from fastmim.config.pretrain import PretrainConfig, resolved
from fastmim.config.resume import ALWAYS_FREE, check_resumed, config_text, resume_flags
from fastmim.config.run import RunConfig
from fastmim.config.segment import SegmentConfig
from fastmim.config.settings import build, differences, merge, to_yaml
from fastmim.config.transfer import TransferConfig
from fastmim.system.documents import read_yaml

__all__ = [
    "ALWAYS_FREE",
    "DetectConfig",
    "FinetuneConfig",
    "PretrainConfig",
    "RunConfig",
    "SegmentConfig",
    "TransferConfig",
    "build",
    "check_resumed",
    "config_text",
    "differences",
    "launch",
    "merge",
    "read_yaml",
    "resolved",
    "resume_flags",
    "run_settings",
    "to_yaml",
]
