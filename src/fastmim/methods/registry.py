"""Registry of the methods by name, the values of `--method`."""

from fastmim.methods.base import Method
from fastmim.methods.masked.fcmae import FCMAE
from fastmim.methods.masked.greenmim import GreenMIM
from fastmim.methods.masked.input_masking import InputMasking
from fastmim.methods.masked.lomar import LoMaR
from fastmim.methods.masked.mae import MAE
from fastmim.methods.masked.ummae import UMMAE
from fastmim.methods.settings import MethodName

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
