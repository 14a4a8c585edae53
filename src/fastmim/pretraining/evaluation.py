"""Is it learning? The loss on held-out images beside that of the constant baseline."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from fastmim.methods.base import Method, Reconstruction, trivial_loss


class HeldOut:
    """Fixed images and masks on which a method is measured, always the same.

    Args:
        method: the torch module; it is put into evaluation mode while it is measured.
        images_BCHW, mask_Bhw: on the module's device.
        micro_batch: images that go through at a time.
        autocast: the precision that training uses.
    """

    def __init__(
        self,
        method: Method,
        images_BCHW: Tensor,
        mask_Bhw: Tensor,
        micro_batch: int,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.method = method
        self.images = images_BCHW
        self.mask = mask_Bhw
        self.micro_batch = micro_batch
        self.autocast = autocast
        self._baseline: float | None = None

    @torch.no_grad()
    def reconstruct(self, count: int) -> Reconstruction:
        """The method's result for the first ``count`` images; the loss is the mean over them."""
        module = self.method
        was_training = module.training
        module.eval()
        parts: list[Reconstruction] = []
        shares = []
        for images, mask in zip(
            torch.split(self.images[:count], self.micro_batch),
            torch.split(self.mask[:count], self.micro_batch),
            strict=True,
        ):
            with self.autocast():
                # Past __call__: what training compiles is not compiled a second time for this.
                parts.append(self.method.forward(images, mask))
            shares.append(len(images) / count)
        module.train(was_training)
        loss = torch.stack([part.loss * share for part, share in zip(parts, shares, strict=True)]).sum()
        return Reconstruction(
            loss,
            torch.cat([part.prediction for part in parts]).float(),
            torch.cat([part.target for part in parts]),
            torch.cat([part.mask for part in parts]),
        )

    def measure(self, say: Callable[[str], None]) -> dict[str, float]:
        """Both losses, told as a line and returned by name."""
        loss = self.loss()
        say(f"held-out loss {loss:.4f}, constant baseline {self.baseline:.4f}")
        return {"held_out_loss": loss, "trivial_loss": self.baseline}

    def loss(self) -> float:
        reconstruction = self.reconstruct(len(self.images))
        if self._baseline is None:
            self._baseline = trivial_loss(self.method, reconstruction)
        return float(reconstruction.loss)

    @property
    def baseline(self) -> float:
        """The constant baseline's loss, which no training changes."""
        if self._baseline is None:
            self.loss()
        assert self._baseline is not None
        return self._baseline
