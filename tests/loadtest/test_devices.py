"""Memory and energy of accelerators, by a driver's library that says what the test tells it."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest

from loadtest.devices import DeviceWatch


class NVMLError(Exception):
    pass


class Driver:
    """What of ``pynvml`` is used. Device i holds (i + 1) GiB more with every look."""

    NVMLError = NVMLError

    def __init__(self, devices: int, energy: bool = True) -> None:
        self.devices, self.energy = devices, energy
        self.looks, self.begun, self.millijoules = 0, 0, 1_000_000
        self.asked: set[object] = set()

    def nvmlInit(self) -> None:
        if not self.devices:
            raise NVMLError("Driver Not Loaded")
        self.begun += 1

    def nvmlShutdown(self) -> None:
        self.begun -= 1

    def nvmlDeviceGetCount(self) -> int:
        return self.devices

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= self.devices:
            raise NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:
        return int(name[-1])

    def nvmlDeviceGetMemoryInfo(self, device: int) -> SimpleNamespace:
        self.looks += 1
        self.asked.add(device)
        return SimpleNamespace(used=(device + 1) * self.looks * 2**30)

    def nvmlDeviceGetTotalEnergyConsumption(self, device: int) -> int:
        if not self.energy:
            raise NVMLError("Not Supported")
        self.millijoules += 3500
        return self.millijoules


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver(2)
    monkeypatch.setitem(sys.modules, "pynvml", found)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return found


def watch(driver: Driver) -> DeviceWatch:
    with DeviceWatch() as found:
        while not driver.looks and driver.begun:
            time.sleep(0.001)
    assert driver.begun == 0
    return found


def test_the_most_of_all_devices_and_what_they_took_between_the_ends(driver: Driver) -> None:
    found = watch(driver)
    assert driver.asked == {0, 1}
    looks = driver.looks
    assert found.most_bytes == ((looks - 1) + 2 * looks) * 2**30  # the last look is the most
    # Each of four readings is 3.5 J above the one before: 1 + 2 of them, then 3 + 4.
    assert found.joules == pytest.approx((3 + 4 - 1 - 2) * 3.5)


@pytest.mark.parametrize(("said", "asked"), [("1", {1}), ("GPU-0,1", {0, 1}), ("", set())])
def test_only_devices_that_a_server_may_use(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, said: str, asked: set[int]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    if asked:
        assert watch(driver).most_bytes is not None
    else:
        with DeviceWatch() as found:
            pass
        assert found.most_bytes is None and found.joules is None
    assert driver.asked == asked


def test_a_driver_without_a_meter_says_only_memory(driver: Driver) -> None:
    driver.energy = False
    found = watch(driver)
    assert found.joules is None and found.most_bytes is not None


def test_nothing_is_known_without_driver_library_or_elsewhere(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DeviceWatch(here=False) as elsewhere:
        pass
    driver.devices = 0
    with DeviceWatch() as undriven:
        pass
    monkeypatch.setitem(sys.modules, "pynvml", None)  # what an import then says is ImportError
    with DeviceWatch() as without:
        pass
    for found in (elsewhere, undriven, without):
        assert found.most_bytes is None and found.joules is None
    assert driver.looks == 0
