"""The methods by name: what `--method` can be."""

from typing import Literal

from fastmim.methods.base import Method
from fastmim.methods.masked.fcmae import FCMAE
from fastmim.methods.masked.greenmim import GreenMIM
from fastmim.methods.masked.input_masking import InputMasking
from fastmim.methods.masked.lomar import LoMaR
from fastmim.methods.masked.mae import MAE
from fastmim.methods.masked.ummae import UMMAE

MethodName = Literal["fastmim", "simmim", "maskfeat", "mae", "lomar", "ummae", "greenmim", "fcmae"]
METHODS: dict[MethodName, type[Method]] = {
    "fastmim": InputMasking,
    "simmim": InputMasking,
    "maskfeat": InputMasking,
    "mae": MAE,
    "lomar": LoMaR,
    "ummae": UMMAE,
    "greenmim": GreenMIM,
    "fcmae": FCMAE,
}


def unused_settings(name: MethodName) -> tuple[str, ...]:
    """Settings, and groups of them, that the method does not heed."""
    method = METHODS[name]
    groups = {other.own for other in METHODS.values() if other.own} - {method.own}
    return (*method.unused, *sorted(groups))
