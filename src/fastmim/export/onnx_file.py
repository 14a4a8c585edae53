"""Write a model as ONNX, and run the file."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastmim.errors import RunError, first_line

ONNX = "model.onnx"
MOST_IN_ONE_FILE = 1_500_000_000  # bytes of weights; protobuf is limited to 2 GiB
OPSET = 17  # of models that choose boxes; from 16 on, regions can be pooled with exact alignment


def write_onnx(
    model: nn.Module, names: list[str], what: str, file: Path, images: Tensor
) -> Callable[[Tensor], list[Tensor]]:
    """Write a model for batches of any length, and return the function that runs the file.

    Args:
        model: images (B, C, H, W) -> a tensor, or a list of tensors, whose first axis is the batch.
        names: of the outputs.
        what: name of the model, for messages.
        images: example (B, C, H, W).

    Raises:
        RunError: torch cannot export the model.
    """
    example = torch.cat([images, images])[:2]  # from a batch of one, the exporter would fix the batch size
    weights = sum(value.nbytes for value in model.state_dict().values())
    try:
        # The exporter cannot trace the memory layout returned by CPU kernels of attention with a bias.
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=names,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except Exception as error:  # torch's exporter raises its own classes
        raise RunError(_failed(what, error)) from error
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, which contain paths of this machine
    program.save(file, external_data=weights > MOST_IN_ONE_FILE)
    run = onnx_session(file)

    def outputs(batch: Tensor) -> list[Tensor]:
        first, others = run(batch[:1]), run(batch)
        return [torch.cat([one, all_[1:]]) for one, all_ in zip(first, others, strict=True)]

    return outputs


def write_traced_onnx(
    model: nn.Module, names: list[str], what: str, file: Path, image: Tensor, dynamic: dict[str, Any]
) -> Callable[[Tensor], list[Tensor]]:
    """Write a model whose outputs depend in shape on the image, as a detector's, for one image at a time.

    torch's other exporter, which traces, is the one that knows torchvision's detection parts.

    Args:
        model: image (1, C, H, W) -> tuple of tensors.
        dynamic: output -> names of its axes that vary.

    Raises:
        RunError: torch cannot export the model.
    """
    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (image,),
                str(file),
                dynamo=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=names,
                dynamic_axes=dynamic,
            )
    except Exception as error:  # torch's exporter raises its own classes
        raise RunError(_failed(what, error)) from error
    return onnx_session(file)


def onnx_session(file: Path) -> Callable[[Tensor], list[Tensor]]:
    """Open a file in ONNX Runtime and return the function that runs it on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        found: Sequence[Any] = session.run(None, {"images": images.numpy()})
        return [torch.from_numpy(values) for values in found]

    return run


def _failed(what: str, error: Exception) -> str:
    return f"torch cannot export {what} to ONNX: {first_line(error.__cause__ or error)}"
