"""Detection and segmentation of the paper: tables 5 and 6, and the COCO columns of table 1b.

Each starts from the encoder that a pre-training or fine-tuning recipe wrote. Settings are those of the
paper's tables 13 and 14, which give peak learning rates, which are divided here by batch / 256. None of the
figures was measured with this code.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fastmim.config import DetectConfig, SegmentConfig
from fastmim.config.detect import RcnnConfig
from fastmim.config.segment import SlidingConfig
from fastmim.data.settings import JitterConfig
from fastmim.recipes.definition import Recipe
from fastmim.train.settings import OptimConfig, ScheduleConfig

VIT_B = "vit_base_patch16_224"
SWIN_B, SWIN_L = "swin_base_patch4_window7_224", "swin_large_patch4_window7_224"
COCO = "table 5: Mask R-CNN on COCO; AP of boxes and masks"
ADE20K = "table 6: UperNet on ADE20K; mIoU"
WARMUP = 1500  # steps
STEPS = 160_000  # on ADE20K
SCALES = (0.75, 0.875, 1.0, 1.125, 1.25)  # of the test, for Swin
PAPERS_HARDWARE = ""  # the paper names none for these tables

# Row of table 5 or 6 -> recipe whose encoder it starts from.
ENCODERS = {
    "mae_vit_b": "table3/mae-vit-b",
    "fastmim_vit_b": "table3/fastmim-vit-b-800",
    "simmim_swin_b": "table3/simmim-swin-b",
    "greenmim_swin_b": "table3/greenmim-swin-b",
    "fastmim_swin_b": "table3/fastmim-swin-b-400",
    "simmim_swin_b_ft": "table3/simmim-swin-b/finetune",
    "fastmim_swin_b_ft": "table3/fastmim-swin-b-400/finetune",
    "simmim_swin_l_ft": "table3/simmim-swin-l/finetune",
    "fastmim_swin_l_ft": "table3/fastmim-swin-l-400/finetune",
    "fastmim_p_swin_l_ft": "table3/fastmim-p-swin-l-400/finetune",
}
MAE_NOTES = """Upgraded Mask R-CNN and large-scale jitter, as Li et al. 2021 (arXiv 2111.11429, section 2).
The paper states no layer decay: none is used.
Attention is global in the last block of each of four subsets, and within 14x14 tokens in the others."""
STEP_NOTES = """The paper says "step": the learning rate falls to a tenth after 27 and 33 of 36 epochs, as is
usual. The released configuration adds simple copy-paste."""
GREENMIM_NOTES = (
    "GreenMIM's setting: batch 16. The paper states its learning rate only: the rest is as SimMIM's."
)
SEGMENT_VIT_NOTES = """Table 14 has a learning rate of 1e-3, the text 3e-4: the table's is used. They differ
in length as well (160k steps, 100 epochs)."""
SEGMENT_SWIN_NOTES = "Table 14 has a batch of 16, the text 32: the table's is used."


def detection(encoder: str, epochs: float, batch: int, peak_lr: float, weight_decay: float) -> DetectConfig:
    """Return Mask R-CNN at 1024 pixels."""
    return DetectConfig(
        encoder=encoder,
        image_size=1024,
        epochs=epochs,
        batch_size=batch,
        layer_decay=1.0,
        head=RcnnConfig(masks="yes"),
        optim=OptimConfig(base_lr=peak_lr * 256 / batch, betas=(0.9, 0.999), weight_decay=weight_decay),
        schedule=ScheduleConfig(warmup_steps=WARMUP),
    )


def mae_setting(encoder: str, epochs: float) -> DetectConfig:
    """Return the settings of table 5's first part: ViT-B, 25 or 100 epochs, cosine schedule."""
    base = detection(encoder, epochs, 32, 8e-5, 0.1)
    return replace(base, drop_path=0.1, vit_windows=14, head=RcnnConfig(masks="yes", upgraded=True))


def simmim_setting(encoder: str, large: bool) -> DetectConfig:
    """Return the settings of table 5's last part: Swin, 36 epochs, step schedule, copy-paste."""
    base = detection(encoder, 36, 32, 6e-5, 0.05)
    schedule = ScheduleConfig(name="step", warmup_steps=WARMUP, milestones=(27.0, 33.0))
    return replace(base, drop_path=0.3 if large else 0.2, schedule=schedule, paste=0.5)


def greenmim_setting(encoder: str) -> DetectConfig:
    """Return the settings of table 5's second part: Swin-B, batch 16."""
    base = detection(encoder, 36, 16, 1e-4, 0.05)
    schedule = ScheduleConfig(name="step", warmup_steps=WARMUP, milestones=(27.0, 33.0))
    return replace(base, drop_path=0.2, schedule=schedule)


def segmentation(encoder: str, peak_lr: float, layer_decay: float) -> SegmentConfig:
    """Return UperNet at 512 pixels, 160k steps of 16 images."""
    return SegmentConfig(
        encoder=encoder,
        image_size=512,
        steps=STEPS,
        batch_size=16,
        drop_path=0.1,
        layer_decay=layer_decay,
        jitter=JitterConfig(scale=(0.5, 2.0)),
        optim=OptimConfig(base_lr=peak_lr * 256 / 16, betas=(0.9, 0.999)),
        schedule=ScheduleConfig(name="linear", warmup_steps=WARMUP),
    )


def dense_recipes(figures: dict[str, Any]) -> Iterator[Recipe]:
    """Yield the recipes of tables 5, 6 and 1b's COCO columns.

    Args:
        figures: contents of paper.yaml.
    """
    for key, rows in figures["table5_coco"].items():
        for row, values in rows.items():
            if row in ENCODERS:
                yield _detection(key, row, values)
    for key, rows in figures["table6_ade20k_miou"].items():
        for row, miou in rows.items():
            if row in ENCODERS:
                yield _segmentation(key, row, miou)
    for backbone, columns in figures["table1b_target"].items():
        for column, (_, box, mask) in columns.items():
            yield _table1b(backbone, column, box, mask)


def _detection(key: str, row: str, values: list[float]) -> Recipe:
    encoder = f"runs/{ENCODERS[row]}"
    if key.startswith("mae_setting"):
        epochs = float(key.rpartition("_")[2].removesuffix("e"))
        config, notes = mae_setting(encoder, epochs), MAE_NOTES
    elif key == "greenmim_setting":
        config, notes = greenmim_setting(encoder), GREENMIM_NOTES
    else:
        config, notes = simmim_setting(encoder, "swin_l" in row), STEP_NOTES
    name = f"table5/{key}/{row}".replace("_", "-")
    title = f"Table 5, {key.replace('_', ' ')}: {_title(row)}."
    figure = f"{values[0]} % box AP, {values[3]} % mask AP"
    return Recipe(name, COCO, title, notes, config, figure, _backbone(row), PAPERS_HARDWARE)


def _segmentation(key: str, row: str, miou: float) -> Recipe:
    encoder = f"runs/{ENCODERS[row]}"
    if key == "mae_setting":
        config, notes = segmentation(encoder, 1e-3, 0.65), SEGMENT_VIT_NOTES
        config = replace(config, relative_positions=True)
    else:
        config, notes = segmentation(encoder, 3e-4, 0.9), SEGMENT_SWIN_NOTES
        config = replace(config, evaluation=SlidingConfig(scales=SCALES, flip=True))
    name = f"table6/{key}/{row}".replace("_", "-")
    title = f"Table 6, {key.replace('_', ' ')}: {_title(row)}."
    return Recipe(name, ADE20K, title, notes, config, f"{miou} % mIoU", _backbone(row), PAPERS_HARDWARE)


def _table1b(backbone: str, column: str, box: float, mask: float) -> Recipe:
    run = f"table1b/{backbone}-{column}px".replace("_", "-")
    if backbone == "vit_b":
        config, notes = mae_setting(f"runs/{run}", 100), MAE_NOTES
    else:
        config, notes = simmim_setting(f"runs/{run}/finetune", large=False), STEP_NOTES
    notes = f"The setting is that of table 5's row with the same figures.\n{notes}"
    title = f"Table 1b, {backbone.replace('_', '-')}, {column.replace('_', ' ')}: Mask R-CNN on COCO."
    table = "table 1b: target and resolution; AP of boxes and masks on COCO"
    figure = f"{box} % box AP, {mask} % mask AP"
    return Recipe(f"{run}/detect", table, title, notes, config, figure, _backbone(backbone), PAPERS_HARDWARE)


def _backbone(row: str) -> str:
    return VIT_B if "vit_b" in row else SWIN_L if "swin_l" in row else SWIN_B


def _title(row: str) -> str:
    """Format a row: ``fastmim_p_swin_l_ft`` -> ``fastmim-p-swin-l, fine-tuned on ImageNet-1K before``."""
    plain = row.removesuffix("_ft").replace("_", "-")
    return f"{plain}, fine-tuned on ImageNet-1K before" if row.endswith("_ft") else plain
