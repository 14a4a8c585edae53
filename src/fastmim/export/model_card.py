"""Write the model card of an export: origin of the weights, and how to load them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import model_entrypoint
from torch import Tensor

from fastmim.encoders.registry import is_known
from fastmim.export.usage import Format
from fastmim.system.documents import checked, read_yaml
from fastmim.system.markdown import table
from fastmim.system.size import Size
from fastmim.train.run_files import CONFIG
from fastmim.weights.model_file import ModelDescription

LOADING = {
    "timm": 'import timm\n{register}model = timm.create_model("local-dir:{folder}", pretrained=True).eval()\n'
    "data_config = timm.data.resolve_model_data_config(model)",
    "huggingface": "from transformers import AutoImageProcessor, {auto}\n{register}"
    'model = {auto}.from_pretrained("{folder}").eval()\n'
    'processor = AutoImageProcessor.from_pretrained("{folder}")',
    "torchvision": "from fastmim.export.torchvision import load_torchvision\n"
    'model = load_torchvision("{folder}").eval()  # or by hand: config.json names constructor and arguments',
    "onnx": 'import onnxruntime\nsession = onnxruntime.InferenceSession("{folder}/model.onnx")\n'
    'outputs = session.run(None, {{"images": images}})  # normalised float32 (B, C, H, W)',
}
PREPARED = {
    "segment": "windows of an image whose shorter side is as in training, normalised",
    "detect": "one image, scaled to fit, normalised, and padded with 0 at the bottom and on the right",
}
LICENCE = "\n## Licence\n\nYours to choose: the weights belong to whoever trained them.\n"


@dataclass(frozen=True)
class _Run:
    """Settings in config.yaml that a card shows."""

    data: str | None = None
    epochs: float | None = None
    steps: int | None = None
    stages: tuple[dict[str, Any], ...] | None = None
    batch_size: int | None = None


def model_card(
    format: Format,
    metadata: dict[str, Any],
    size: Size,
    encoder: str | Path,
    folder: str,
    output: Tensor,
    found: str,
) -> str:
    """Return the text of README.md. Of the data's path, it shows the last part only."""
    path = Path(encoder).expanduser()
    config_file = (path if path.is_dir() else path.parent) / CONFIG
    config = _Run()
    if config_file.exists():
        config = checked(_Run, read_yaml(config_file), str(config_file))
    data = config.data or ""
    name, classes = metadata["model"], metadata["kwargs"].get("num_classes", 0)
    rows = {
        "Model": f"`{name}`",
        "Output": f"{'logits' if classes else 'features'} (B, {', '.join(map(str, output.shape[1:]))})",
        "Image size": f"{size[0]} x {size[1]} pixels",
        "Mean, std": f"{tuple(metadata['mean'])}, {tuple(metadata['std'])} of values in 0..1",
        "Method": metadata.get("method"),
        "Pre-training": metadata.get("fine_tuned_from", {}).get("method"),
        "Target": metadata.get("target"),
        "Data": data if data.startswith("hf:") else re.split(r"[\\/]", data.rstrip("\\/"))[-1],
        "Epochs": None if config.steps else config.epochs,
        "Steps": config.steps,
        "Stages": "; ".join(
            ", ".join(f"{what} {value}" for what, value in stage.items() if value is not None)
            for stage in config.stages or ()
        ),
        "Batch size": config.batch_size,
        "fastmim": metadata.get("fastmim_version"),
    }
    own = is_known(name) and model_entrypoint(name).__module__.startswith("fastmim.")
    loading = LOADING[format].format(
        folder=folder,
        auto="AutoModelForImageClassification" if classes else "AutoModel",
        register="import fastmim.encoders.registry  # registers the model with timm\n" if own else "",
    )
    lines = [
        "---",
        f"library_name: {'transformers' if format == 'huggingface' else format}",
        f"pipeline_tag: image-{'classification' if classes else 'feature-extraction'}",
        "tags:\n- fastmim\n- masked-image-modeling",
        f"---\n\n# {name}\n",
        table(
            ("", ""), [(what, str(value)) for what, value in rows.items() if value not in (None, "")], "ll"
        ),
        f"\n## Loading\n\n```python\n{loading}\n```\n\n## Check\n\nRead back and run on {found}.",
        LICENCE,
    ]
    return "\n".join(lines)


def dense_card(described: ModelDescription, outputs: dict[str, str], folder: str, found: str) -> str:
    """Return the text of README.md for the ONNX file of a segmenter or detector.

    Args:
        outputs: name -> shape and meaning.
        found: sentence about the comparison.
    """
    height, width = described.image_size
    number = "B" if described.task == "segment" else "1"
    loading = LOADING["onnx"].format(folder=folder).replace("(B,", f"({number},")
    rows = {
        "Backbone": f"`{described.model}`",
        "Input": f"`images`: ({number}, {described.in_chans}, {height}, {width}), float32",
        "Preparation": PREPARED[described.task],
        **{f"Output `{name}`": meaning for name, meaning in outputs.items()},
        "Mean, std": f"{described.mean}, {described.std} of values in 0..1",
        "fastmim": described.fastmim_version,
    }
    task = {"segment": "image-segmentation", "detect": "object-detection"}[described.task]
    classes = "\n".join(f"{number}. {name}" for number, name in enumerate(described.classes))
    lines = [
        f"---\nlibrary_name: onnx\npipeline_tag: {task}\ntags:\n- fastmim\n---\n",
        f"# {'UperNet' if described.task == 'segment' else 'R-CNN'} on {described.model}\n",
        table(("", ""), [(what, str(value)) for what, value in rows.items()], "ll"),
        f"\n## Classes\n\n{classes}",
        f"\n## Loading\n\n```python\n{loading}\n```",
        f"\n## Check\n\nRead back and run on {found}.",
        LICENCE,
    ]
    return "\n".join(lines)
