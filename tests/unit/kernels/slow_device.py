"""A device whose memory is apart from the host's, and which is as slow as can be: it gets nowhere by itself."""

from __future__ import annotations

import torch
from torch import Tensor

NOT_YET = -77


class SlowDevice:
    """See Transfers. What is launched counts as done when somebody waits for it, and not before.

    Attributes:
        to_device_bytes: of each copy to the device. num_to_host: copies back. waits: marks that were waited for.
    """

    def __init__(self) -> None:
        self.to_device_bytes: list[int] = []
        self.num_to_host = 0
        self.waits: list[int] = []
        self.num_marks = 0
        self._running: list[tuple[int, Tensor, Tensor]] = []  # copies that still read host memory, as it was
        self._coming: list[tuple[int, Tensor, Tensor]] = []  # copies to the host, and what they bring

    def host_memory(self, num_bytes: int) -> Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def device_memory(self, num_bytes: int) -> Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def to_device(self, target: Tensor, source: Tensor) -> None:
        self.to_device_bytes.append(source.nbytes)
        target.copy_(source)
        self._running.append((self.num_marks, source, source.clone()))

    def to_host(self, source: Tensor) -> Tensor:
        self.num_to_host += 1
        target = torch.full_like(source, NOT_YET)
        self._coming.append((self.num_marks, target, source.clone()))
        return target

    def mark(self) -> int:
        self.num_marks += 1
        return self.num_marks

    @torch.inference_mode()
    def wait(self, mark: object) -> None:
        assert isinstance(mark, int)
        self.waits.append(mark)
        for launched, source, before in self._running:
            if launched < mark:
                assert torch.equal(source, before), "the host wrote what a copy still read"
        for launched, target, values in self._coming:
            if launched < mark:
                target.copy_(values)
        self._running = [each for each in self._running if each[0] >= mark]
        self._coming = [each for each in self._coming if each[0] >= mark]
