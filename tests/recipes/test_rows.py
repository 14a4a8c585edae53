"""Resolved recipes beside the rows of the paper's tables, as they were read from its text and captions.

Windows are those of appendix A.3.2: Swin-B 4 at 128 pixels and in proportion, Swin-L 8. A mask is as large
as the backbone's stride; decoders are table 11's, or the row's own.
"""

import re

import pytest

from conftest import mostly_slow
from fastmim.config import FinetuneConfig
from fastmim.recipes import recipe, resolve

PRETRAINING = """
recipe                             method   pixels      epochs      window mask ratio decoder target
table1a/vit-b-200e-64px            fastmim  64          200         -      16   0.75  1b256d  pixels-norm
table1a/vit-b-400e-160px           fastmim  160         400         -      16   0.75  1b256d  pixels-norm
table1a/vit-b-800e-224px           fastmim  224         800         -      16   0.75  1b256d  pixels-norm
table1a/swin-b-100e-64px           fastmim  64          100         2      32   0.75  4b256d  pixels-norm
table1a/swin-b-400e-96px           fastmim  96          400         3      32   0.75  4b256d  pixels-norm
table1a/swin-b-800e-128px          fastmim  128         800         4      32   0.75  4b256d  pixels-norm
table1a/swin-b-800e-160px          fastmim  160         800         5      32   0.75  4b256d  pixels-norm
table1a/swin-b-800e-192px          fastmim  192         800         6      32   0.75  4b256d  pixels-norm
table1a/swin-b-800e-224px          fastmim  224         800         7      32   0.75  4b256d  pixels-norm
table1b/vit-b-hog-128px            fastmim  128         800         -      16   0.75  1b256d  hog
table1b/swin-b-hog-224px           fastmim  224         400         7      32   0.75  4b256d  hog
table2/vit-b-pixel-128px           fastmim  128         800         -      16   0.75  1b256d  pixels-norm
table2/swin-b-hog-192px            fastmim  192         400         6      32   0.75  4b256d  hog
table2/swin-l-hog-192px            fastmim  192         400         12     32   0.75  4b512d  hog
table2/swin-l-pixel-128px          fastmim  128         400         8      32   0.75  4b512d  pixels-norm
table3/fastmim-vit-b-400           fastmim  128         400         -      16   0.75  1b256d  hog
table3/fastmim-vit-b-800           fastmim  128         800         -      16   0.75  1b256d  hog
table3/fastmim-vit-l-800           fastmim  128         800         -      16   0.75  8b512d  hog
table3/fastmim-p-vit-l-800         fastmim  128,160,192 500,200,100 -      16   0.75  8b512d  hog
table3/fastmim-swin-b-400          fastmim  128         400         4      32   0.75  4b256d  hog
table3/fastmim-swin-l-800          fastmim  128         800         8      32   0.75  4b512d  hog
table3/fastmim-p-swin-l-400        fastmim  128,160,192 200,100,100 8      32   0.75  4b512d  hog
table3/mae-vit-b                   mae      224         1600        -      16   0.75  8b512d  pixels-norm
table3/mae-vit-l                   mae      224         1600        -      16   0.75  8b512d  pixels-norm
table3/simmim-swin-b               simmim   192         800         6      32   0.6   -       pixels
table3/greenmim-swin-b             greenmim 224         800         7      32   0.75  1b512d  pixels-norm
table4/swin-b                      fastmim  128         400         4      32   0.75  4b256d  hog
table4/pvt-v2-b5                   fastmim  128         800         -      32   0.75  4b256d  hog
table4/convnext-b                  fastmim  128         800         -      32   0.75  4b256d  hog
table4/cmt-s                       fastmim  128         800         -      32   0.75  4b256d  hog
table7/vit-l-pixel-224px           fastmim  224         800         -      16   0.75  8b512d  pixels-norm
table7/swin-b-hog-128px            fastmim  128         800         4      32   0.75  4b256d  hog
table7/swin-l-pixel-192px          fastmim  192         800         12     32   0.75  4b512d  pixels-norm
table9/vit-b-fastmim-kd            fastmim  128         400         -      16   0.75  1b256d  hog
table10a/mim-image-encoder-learned fastmim  224         800         -      16   0.75  1b256d  pixels
table10b/vit-b-8px-0.85            fastmim  128         400         -      8    0.85  1b256d  hog
table10b/swin-b-64px-0.65          fastmim  128         400         4      64   0.65  4b256d  hog
table15/mae-vit-b-400e-96px        mae      96          400         -      16   0.75  8b512d  pixels-norm
table16/vit-l-4b768d               fastmim  128         100         -      16   0.75  4b768d  hog
table16/swin-l-8b512d              fastmim  128         100         8      32   0.75  8b512d  hog
"""
FINE_TUNING = """
recipe                               pixels epochs lr   decay drop batch
table1a/vit-b-200e-64px/finetune     224    100    1e-3 0.7   0.1  1024
table1c/swin-b-2-2-18-0/finetune     224    100    1e-3 0.8   0.1  1024
table2/swin-l-hog-192px/finetune     224    100    1e-3 0.75  0.3  1024
table3/fastmim-vit-b-800/finetune    224    100    1e-3 0.7   0.1  1024
table4/swin-l/finetune               224    100    1e-3 0.75  0.3  1024
table4/pvt-v2-b2/finetune            224    200    1e-3 0.75  0.1  1024
table4/convnext-t/finetune           224    300    1e-3 0.75  0.1  1024
table4/cmt-b/finetune                224    200    1e-3 0.75  0.1  1024
table8/in1k-224px/finetune-384       384    100    1e-3 0.8   0.1  1024
table9/pvt-v2-b2-fastmim-kd/finetune 224    100    1e-3 0.75  0.1  1024
table10b/vit-b-8px-0.85/finetune     224    100    1e-3 0.7   0.1  1024
"""


def rows(text):
    head, *lines = text.strip().splitlines()
    return [dict(zip(head.split(), line.split(), strict=True)) for line in lines]


def window(config):
    """Tokens along a side of the first stage's windows; what is not given is part of the model's name."""
    found = re.search(r"window(\d+)", config.model)
    return str(config.model_kwargs.get("window_size", found.group(1) if found else "-"))


# One row of a given window and stages, a dropping method and a pyramid.
DEFAULT = """
table3/fastmim-p-swin-l-400 table4/cmt-s table15/mae-vit-b-400e-96px
""".split()  # noqa: SIM905


@pytest.mark.parametrize(
    "row",
    mostly_slow(rows(PRETRAINING), [row for row in rows(PRETRAINING) if row["recipe"] in DEFAULT]),
    ids=lambda row: row["recipe"],
)
def test_a_pre_training_is_what_its_row_says(row):
    config = resolve(recipe(row["recipe"]).config)
    planned_stages = config.planned_stages
    decoder = f"{config.decoder.depth}b{config.decoder.width}d" if config.decoder.depth else "-"
    found = {
        "recipe": row["recipe"],
        "method": config.method,
        "pixels": ",".join(str(stage.size[0]) for stage in planned_stages),
        "epochs": ",".join(f"{stage.epochs:g}" for stage in planned_stages),
        "window": window(config),
        "mask": str(config.mask.size),
        "ratio": f"{config.mask.ratio:g}",
        "decoder": decoder,
        "target": config.target.name,
    }
    assert found == row
    assert all(stage.size[0] == stage.size[1] for stage in planned_stages)
    if config.method == "fastmim":  # table 11
        assert (config.batch_size, config.optim.base_lr, config.optim.weight_decay) == (2048, 1.5e-4, 0.05)
        assert config.optim.betas == (0.9, 0.95)
        assert config.schedule.warmup_epochs == 10
    assert config.encoder.table_window == (14 if "fastmim-p-swin-l" in row["recipe"] else None)


@pytest.mark.parametrize("row", rows(FINE_TUNING), ids=lambda row: row["recipe"])
def test_a_fine_tuning_is_what_its_row_says(row):
    config = recipe(row["recipe"]).config
    assert isinstance(config, FinetuneConfig)
    found = {
        "recipe": row["recipe"],
        "pixels": str(config.size[0]),
        "epochs": f"{config.epochs:g}",
        "lr": f"{config.optim.base_lr:.0e}".replace("e-0", "e-"),
        "decay": f"{config.layer_decay:g}",
        "drop": f"{config.drop_path:g}",
        "batch": str(config.batch_size),
    }
    assert found == row
    assert (config.schedule.warmup_epochs, config.schedule.min_lr) == (5, 1e-6)
