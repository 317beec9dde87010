"""What differs between devices, and tensors on their way to one and back.

Only torch is imported. Callers name this module (`devices.is_cpu`), so that a test and a benchmark
can have a CPU do what an accelerator would.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_cpu(device: torch.device) -> bool:
    """Whether values may be asked for at no cost, and launches cost nothing beside arithmetic."""
    return device.type == "cpu"


def is_cuda(device: torch.device) -> bool:
    """Whether it has CUDA's kernels; "meta" stands for it where operations are counted."""
    return device.type in ("cuda", "meta")


def sent(indices: Tensor, device: torch.device) -> Tensor:
    """On their way to the device; a copy from pageable memory would wait for the device's queue."""
    if device.type == "cuda":
        indices = indices.pin_memory()
    return indices.to(device, non_blocking=True)


class Arrival:
    """Tensors on their way to the CPU, in float32: an accelerator is asked once for all of them.

    CUDA goes on meanwhile. Who takes them waits until the copy is made, and for nothing that the
    device was asked for after it.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        device = tensors[0].device
        wide = [tensor.to(device, torch.float32) for tensor in tensors]
        together = wide[0] if len(wide) == 1 else torch.cat([one.flatten() for one in wide])
        goes_on = can_go_on(device)
        self._there = together.to("cpu", non_blocking=goes_on)
        self._copied = torch.cuda.current_stream(device).record_event() if goes_on else None

    def taken(self) -> list[Tensor]:
        """All of them, once they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        if len(self.tensors) == 1:
            return [self._there]
        parts = self._there.split([tensor.numel() for tensor in self.tensors])
        return [part.view(own.shape) for part, own in zip(parts, self.tensors, strict=True)]


def can_go_on(device: torch.device) -> bool:
    """Whether the device copies to the CPU while the program goes on."""
    return device.type == "cuda"


def fetched(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in float32 on the CPU, with one question to an accelerator."""
    return Arrival(tensors).taken()
