"""Devices: what can be said of them without torch, and what torch says."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from offline.runs import device
from offline.runs.device import check_device, pick_device
from vllm_moe_prune.errors import PruneError


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the only driver of a GPU would be."""
    monkeypatch.setattr(device, "_DRIVERS", (str(tmp_path / "nvidiactl"),))
    return tmp_path / "nvidiactl"


@pytest.mark.parametrize("name", ["auto", "cpu", "cpu:0", "mps", "xpu:1"])
def test_what_torch_may_know_is_left_to_it(name: str, driver: Path) -> None:
    check_device(name)


@pytest.mark.parametrize("name", ["abacus", "", "cuda:", "cuda:x", "auto:1", "CPU", "cuda:-1"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(PruneError, match="unknown device"):
        check_device(name)


def test_a_gpu_needs_a_driver_and_a_build_for_it(
    driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PruneError, match="--device cuda:1: this machine has no GPU"):
        check_device("cuda:1")
    driver.touch()
    monkeypatch.setattr(device.importlib.metadata, "version", lambda _: "2.13.0+cpu")
    with pytest.raises(PruneError, match=r"torch 2.13.0\+cpu is a build for CPUs"):
        check_device("cuda")
    monkeypatch.setattr(device.importlib.metadata, "version", lambda _: "2.13.0")
    check_device("cuda")

    def absent(_: str) -> NoReturn:
        raise PackageNotFoundError

    monkeypatch.setattr(device.importlib.metadata, "version", absent)
    check_device("cuda")


@pytest.mark.parametrize(("name", "count", "fits"), [("cuda", 1, True), ("cuda:1", 1, False)])
def test_there_must_be_as_many_gpus(
    name: str, count: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if fits:
        assert pick_device(name) == name
    else:
        with pytest.raises(PruneError, match="--device cuda:1: torch sees 1 GPU"):
            pick_device(name)
