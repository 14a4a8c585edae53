"""Initial weights of a backbone, as drawn by timm or by the released code of MIM methods."""

import torch
from torch import nn

TOKEN_STD = 0.02


@torch.no_grad()
def draw_xavier(model: nn.Module) -> None:
    """Draw linear layers by xavier_uniform in place (released code of MAE, FastMIM, LoMaR, UM-MAE, GreenMIM).

    Biases become 0, layer norms 1 and 0, and class tokens normal with a standard deviation of 0.02. The patch
    embedding, a convolution whose kernel equals its stride, is drawn like the equivalent linear layer on a
    patch. Other convolutions, tables and scales keep timm's initial values, and layers that are initialised
    to zero stay zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if not module.weight.any():
                continue
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            nn.init.ones_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d) and _is_patch_embedding(module):
            nn.init.xavier_uniform_(module.weight.flatten(1))
    for name in ("cls_token", "dist_token"):
        token = getattr(model, name, None)
        if isinstance(token, nn.Parameter):
            nn.init.normal_(token, std=TOKEN_STD)


def _is_patch_embedding(convolution: nn.Conv2d) -> bool:
    sides = convolution.kernel_size == convolution.stride and min(convolution.kernel_size) > 1
    return sides and convolution.groups == 1 and convolution.padding in ((0, 0), 0)
