"""Fine-tuning of every run of the paper's tables, and table 4's backbones from scratch.

Each is named after the run whose encoder it uses: ``table4/swin-b/finetune`` fine-tunes the encoder that
``table4/swin-b`` wrote to runs/table4/swin-b. Table 12 gives settings for ViT-B, Swin-B and Swin-L; the other
backbones use the centre of the paper's grid (appendix A.3.3), and `fastmim sweep` searches around it. None of
the figures was measured with this code.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fastmim.config import FinetuneConfig, PretrainConfig
from fastmim.recipes.definition import NO_FIGURE, Recipe
from fastmim.recipes.supervised import AUTHORS
from fastmim.train.settings import OptimConfig, ScheduleConfig

BATCH = 1024
TABLE9_EPOCHS = 100.0  # from its caption
# Table 12: (base_lr, layer_decay, drop_path) by model.
TABLE12 = {
    "vit_base_patch16_224": (1e-3, 0.7, 0.1),
    "swin_base_patch4_window7_224": (1e-3, 0.8, 0.1),
    "swin_large_patch4_window7_224": (1e-3, 0.75, 0.3),
}
CENTRE = (1e-3, 0.75, 0.1)
NOT_IN_TABLE12 = "Table 12 has no settings for this backbone: these are the centre of the paper's grid."
RELEASED_LR = {"vit_base_patch16_224": 6e-4}
RELEASED = "finetune-released"
FINETUNED_TABLES = ("table3", "table4", "table7", "table9", "table15")
MAIN_TABLES = ("table3", "table4")
ABLATIONS = ("table1a", "table1b", "table1c", "table2", "table10a", "table10b", "table16")
FCMAE_NOTES = (
    "As ConvNeXt V2's authors fine-tune it (ConvNeXt-V2/TRAINING.md, ConvNeXt V2-Base): layer decay 0.6 over "
    "groups of three blocks, a running mean of the weights, 20 epochs of warm-up."
)
SUPERVISED_NOTES = "The paper gives only the epochs; the other settings are from: {source}."


def finetuned(model: str, encoder: str, epochs: float, size: int = 224) -> FinetuneConfig:
    """Return the fine-tuning settings of a backbone from table 12."""
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


def finetuning_recipes(pretraining: dict[str, Recipe], figures: dict[str, Any]) -> Iterator[Recipe]:
    """Yield fine-tuning recipes for each run of the paper's tables, and table 4's backbones from scratch.

    Args:
        pretraining: pre-training recipes by name.
        figures: contents of paper.yaml.
    """
    for name, recipe in pretraining.items():
        table, _, row = name.partition("/")
        key = row.replace("-", "_")
        top1 = recipe.paper.split(" (")[0].split(",")[0].split(";")[0]
        if table in (*FINETUNED_TABLES, *ABLATIONS):
            if table == "table2":
                top1 = NO_FIGURE
            epochs = _epochs(table, key, figures)
            yield _finetune(recipe, f"{name}/finetune", epochs, 224, top1)
            if table in MAIN_TABLES and recipe.backbone in RELEASED_LR and _is_fastmim(recipe):
                yield _released(recipe, f"{name}/{RELEASED}", epochs, top1)
        if table == "table8":
            for data, _, size, tuned, top1 in figures["table8_swin_b"]:
                if row == f"{data}-{size}px":
                    paper = f"{top1} % top-1 at {tuned}"
                    yield _finetune(recipe, f"{name}/finetune-{tuned}", 100, tuned, paper)
        if table == "table4" and key in figures["table4_supervised"]:
            yield _scratch(recipe, name, figures["table4_supervised"][key], figures["table4"][key][-1])


def _finetune(recipe: Recipe, name: str, epochs: float, size: int, paper: str) -> Recipe:
    settings = finetuned(recipe.backbone, f"runs/{recipe.name}", epochs, size)
    notes = [] if recipe.backbone in TABLE12 else [NOT_IN_TABLE12]
    if isinstance(recipe.config, PretrainConfig) and recipe.config.method == "fcmae":
        settings, notes = _as_convnext_v2(settings), [FCMAE_NOTES]
    if recipe.backbone in RELEASED_LR:
        notes.append(
            f"Table 12's base learning rate; the released command has {RELEASED_LR[recipe.backbone]:g}."
        )
    if _shortened(recipe):
        notes.append("Blocks that were not pre-trained are newly initialised.")
    title = f"{recipe.title.rstrip('.').split(':')[0]}: fine-tuning at {size} pixels."
    tuned = Recipe(name, recipe.table, title, "\n".join(notes), settings, paper, recipe.backbone)
    return replace(tuned, hardware="") if paper == NO_FIGURE else tuned


def _as_convnext_v2(settings: FinetuneConfig) -> FinetuneConfig:
    return replace(
        settings,
        layer_decay=0.6,
        layer_decay_blocks=3,
        ema=0.9999,
        drop_path=0.1,
        optim=replace(settings.optim, base_lr=6.25e-4),
        schedule=replace(settings.schedule, warmup_epochs=20),
    )


def _released(recipe: Recipe, name: str, epochs: float, paper: str) -> Recipe:
    tuned = _finetune(recipe, name, epochs, 224, paper)
    assert isinstance(tuned.config, FinetuneConfig)
    optim = replace(tuned.config.optim, base_lr=RELEASED_LR[recipe.backbone])
    return replace(
        tuned,
        title=f"{tuned.title.rstrip('.')}, as released.",
        notes="The released command's base learning rate; table 12 has 0.001.",
        config=replace(tuned.config, optim=optim),
    )


def _scratch(recipe: Recipe, name: str, entry: list[float], top1: float) -> Recipe:
    epochs, hours = entry
    authors = AUTHORS[recipe.backbone]
    notes = SUPERVISED_NOTES.format(source=authors.source)
    if "swin_large" in recipe.backbone:
        notes += "\nThe paper then continues for 100 epochs at 224: fine-tune the result of this run."
    settings = authors.config(recipe.backbone, epochs)
    title = f"{recipe.title.rstrip('.')}, supervised from scratch."
    paper = f"{top1} % top-1, {hours} GPU hours"
    return Recipe(f"{name}/scratch", recipe.table, title, notes, settings, paper, recipe.backbone)


def _is_fastmim(recipe: Recipe) -> bool:
    return isinstance(recipe.config, PretrainConfig) and recipe.config.method == "fastmim"


def _shortened(recipe: Recipe) -> bool:
    return isinstance(recipe.config, PretrainConfig) and recipe.config.encoder.depth is not None


def _epochs(table: str, row: str, figures: dict[str, Any]) -> float:
    """Return the epochs of the table or its caption, else those of table 4, or table 12's 100."""
    if table == "table3":
        return float(figures["table3"][row][4])
    if table == "table9":
        return TABLE9_EPOCHS
    backbone = next(filter(row.startswith, figures["table4"]), None)
    return float(figures["table4"][backbone][4]) if backbone else 100.0
