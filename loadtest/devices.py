"""What accelerators hold and take while a server is measured, where NVIDIA's driver tells.

The binding is NVIDIA's own, ``pynvml`` of the package nvidia-ml-py; without it, or without a
driver, nothing is known.
"""

from __future__ import annotations

import importlib
import os
import threading
from types import TracebackType
from typing import Any

_PERIOD_SECONDS = 0.5


class DeviceWatch:
    """Samples memory twice a second between entering and leaving; energy is read at both ends.

    Attributes, once left: ``most_bytes``, the most that all devices held together, whoever held it;
    ``joules``, what they took, idle or not. None: the driver does not say.

    :param here: whether the server runs on this machine; nothing is watched otherwise
    """

    def __init__(self, *, here: bool = True) -> None:
        self.most_bytes: int | None = None
        self.joules: float | None = None
        self._nvml = _nvml() if here else None
        self._devices: list[Any] = []
        self._begin: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> DeviceWatch:
        if self._nvml is not None:
            self._devices = _visible(self._nvml)
        if self._devices:
            self._begin = self._energy()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._devices:
            self._thread.join()
            end = self._energy()
            if end is not None and self._begin is not None:
                self.joules = end - self._begin
        if self._nvml is not None:
            self._nvml.nvmlShutdown()

    def _run(self) -> None:
        while True:
            used = self._memory()
            if used is not None:
                self.most_bytes = max(self.most_bytes or 0, used)
            if self._stop.wait(_PERIOD_SECONDS):
                return

    def _memory(self) -> int | None:
        assert self._nvml is not None
        try:
            return sum(int(self._nvml.nvmlDeviceGetMemoryInfo(one).used) for one in self._devices)
        except self._nvml.NVMLError:  # a device that shares its host's memory has none of its own
            return None

    def _energy(self) -> float | None:
        """Joules since the driver was loaded."""
        assert self._nvml is not None
        try:
            total = self._nvml.nvmlDeviceGetTotalEnergyConsumption  # millijoules; since Volta
            return sum(int(total(one)) for one in self._devices) / 1000
        except self._nvml.NVMLError:
            return None


def _nvml() -> Any:
    """NVIDIA's library, begun; None if it is not there."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def _visible(nvml: Any) -> list[Any]:
    """The devices that a server started from here may use."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        if said is None:
            count = int(nvml.nvmlDeviceGetCount())
            return [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(count)]
        return [
            nvml.nvmlDeviceGetHandleByIndex(int(name))
            if name.isdigit()
            else nvml.nvmlDeviceGetHandleByUUID(name)
            for name in filter(None, map(str.strip, said.split(",")))
        ]
    except nvml.NVMLError:
        return []
