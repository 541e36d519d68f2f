"""What a user gets with `pip install`: one wheel that is whole and that moves nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source))
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_has_all_packages_data_and_entry_points(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(n for n in names if n.endswith("entry_points.txt"))
        text = archive.read(entry_points).decode()
    assert "vmprune = offline.cli.main:main" in text
    assert "pruned_moe = vllm_moe_prune.plugin:register" in text
    assert {f"{p}/py.typed" for p in ("vllm_moe_prune", "offline", "serve", "loadtest")} <= names
    data = {"offline/demo/deltas.safetensors", "offline/report/report.html"}
    assert data | {"offline/report/style.html", "loadtest/workload.jsonl"} <= names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


@pytest.mark.slow
def test_installing_it_beside_torch_and_vllm_changes_no_other_package(
    wheel: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    pip("install", "--quiet", "--dry-run", "--force-reinstall", "--no-deps", str(wheel))
    pip("install", "--quiet", "--dry-run", "--report", str(report), str(wheel))
    planned = [entry["metadata"]["name"] for entry in json.loads(report.read_text())["install"]]
    assert planned in ([], ["vllm-moe-prune"])
