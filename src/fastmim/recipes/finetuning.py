"""Fine-tuning of the paper's results (tables 3, 4, 7, 8, 9, 15), and table 4's backbones from scratch.

Each is named after the run whose encoder it takes: ``table4/swin-b/finetune`` fine-tunes what
``table4/swin-b`` wrote to runs/table4/swin-b. Table 12 gives settings for ViT-B, Swin-B and Swin-L; the other
backbones have the centre of the paper's grid (appendix A.3.3), and `fastmim sweep` searches around it. None
of the figures was measured with this code.
"""

from collections.abc import Iterator
from typing import Any

from fastmim.config import FinetuneConfig
from fastmim.recipes.definition import Recipe
from fastmim.train.optim import OptimConfig
from fastmim.train.schedules import ScheduleConfig

BATCH = 1024
# model: (base_lr, layer_decay, drop_path) of table 12; ViT-B's learning rate is the released command's.
TABLE12 = {
    "vit_base_patch16_224": (6e-4, 0.7, 0.1),
    "swin_base_patch4_window7_224": (1e-3, 0.8, 0.1),
    "swin_large_patch4_window7_224": (1e-3, 0.75, 0.3),
}
CENTRE = (1e-3, 0.75, 0.1)
NOT_IN_TABLE12 = "Table 12 has no settings for it: these are the centre of the paper's grid."
SUPERVISED_NOTES = (
    "The paper says how long, not how: here learning rate and regularisation are those that Swin's and\n"
    "ConvNeXt's authors train with from scratch (1e-3 at a batch of 1024)."
)


def finetuned(model: str, encoder: str, epochs: float, size: int = 224) -> FinetuneConfig:
    """Table 12's fine-tuning of a backbone."""
    base_lr, layer_decay, drop_path = TABLE12.get(model, CENTRE)
    return FinetuneConfig(
        encoder=encoder,
        image_size=size,
        epochs=epochs,
        batch_size=BATCH,
        layer_decay=layer_decay,
        drop_path=drop_path,
        optim=OptimConfig(base_lr=base_lr, betas=(0.9, 0.999)),
        schedule=ScheduleConfig(warmup_epochs=5, min_lr=1e-6),
    )


def supervised(model: str, epochs: float, size: int = 224) -> FinetuneConfig:
    """The same backbone from scratch: all layers learn equally fast."""
    _, _, drop_path = TABLE12.get(model, CENTRE)
    return FinetuneConfig(
        encoder="none",
        model=model,
        image_size=size,
        epochs=epochs,
        batch_size=BATCH,
        layer_decay=1.0,
        drop_path=drop_path,
        optim=OptimConfig(base_lr=2.5e-4, betas=(0.9, 0.999)),
        schedule=ScheduleConfig(warmup_epochs=20, min_lr=1e-6),
    )


def finetuning_recipes(pretraining: dict[str, Recipe], figures: dict[str, Any]) -> Iterator[Recipe]:
    """Fine-tuning for each run of tables 3, 4, 7, 8, 9 and 15, and table 4's backbones from scratch.

    Args:
        pretraining: the recipes of pre-training, by name.
        figures: paper.yaml.
    """
    for name, recipe in pretraining.items():
        table, _, row = name.partition("/")
        key = row.replace("-", "_")
        if table in ("table3", "table4", "table7", "table9", "table15"):
            top1 = recipe.paper.split(" (")[0].split(",")[0]
            yield _finetune(recipe, f"{name}/finetune", _epochs(table, key, figures), 224, top1)
        if table == "table8":
            for data, _, size, tuned, top1 in figures["table8_swin_b"]:
                if row == f"{data}-{size}px":
                    paper = f"{top1} % top-1 at {tuned}"
                    yield _finetune(recipe, f"{name}/finetune-{tuned}", 100, tuned, paper)
        if table == "table4" and key in figures["table4_supervised"]:
            yield _scratch(recipe, name, figures["table4_supervised"][key], figures["table4"][key][-1])


def _finetune(recipe: Recipe, name: str, epochs: float, size: int, paper: str) -> Recipe:
    settings = finetuned(recipe.backbone, f"runs/{recipe.name}", epochs, size)
    notes = "" if recipe.backbone in TABLE12 else NOT_IN_TABLE12
    title = f"{recipe.title.rstrip('.').split(':')[0]}: fine-tuning at {size} pixels."
    return Recipe(name, recipe.table, title, notes, settings, paper, recipe.backbone)


def _scratch(recipe: Recipe, name: str, entry: list[float], top1: float) -> Recipe:
    epochs, hours = entry
    notes = SUPERVISED_NOTES
    size = 224
    if "swin_large" in recipe.backbone:
        size = 192
        notes += "\nThe paper goes on for 100 epochs at 224: fine-tune the result of this run."
    settings = supervised(recipe.backbone, epochs, size)
    title = f"{recipe.title.rstrip('.')}, supervised from scratch."
    paper = f"{top1} % top-1, {hours} GPU hours"
    return Recipe(f"{name}/scratch", recipe.table, title, notes, settings, paper, recipe.backbone)


def _epochs(table: str, row: str, figures: dict[str, Any]) -> float:
    """As tables 3 and 4 say; other tables' backbones as in table 4, or the 100 of table 12."""
    if table == "table3":
        return float(figures["table3"][row][4])
    backbone = next(filter(row.startswith, figures["table4"]), None)
    return float(figures["table4"][backbone][4]) if backbone else 100.0
