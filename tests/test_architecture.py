"""Who may import whom (docs/decisions and CONTRIBUTING.md say why), and how long a file may be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.floors import FLOORS, PACKAGES, ROOT, circles, graph, imports, name_of, upward

MAY_IMPORT = {
    "vllm_moe_prune": ("vllm_moe_prune",),
    "offline": (
        *("offline", "vllm_moe_prune"),
        *("serve.command", "serve.server", "serve.logs", "serve.process"),
    ),
    "serve": ("serve", "vllm_moe_prune"),
    "loadtest": (
        "loadtest",
        "serve.server",
        "serve.describe",
        "serve.process",
        "vllm_moe_prune.errors",
        "vllm_moe_prune.hub",
        "vllm_moe_prune.reading",
    ),
}
MAY_IMPORT_VLLM = (
    "vllm_moe_prune/loader.py",
    "vllm_moe_prune/draft_loader.py",
    "vllm_moe_prune/live_loader.py",
    "vllm_moe_prune/vllm_compat/",
    "vllm_moe_prune/plugin.py",
    "offline/engines/live/",
    "serve/",
)
# What a serving host need not have: none of it may be imported when these modules are.
HEAVY = ("torch", "transformers", "vllm", "lm_eval", "datasets", "accelerate", "scipy", "peft")
LIGHT = (
    "vllm_moe_prune/plugin.py",
    "vllm_moe_prune/routing_map.py",
    "vllm_moe_prune/rewrite.py",
    "vllm_moe_prune/checkpoint.py",
    "vllm_moe_prune/writer.py",
    "offline/cli/",
    "offline/analysis/",
    "offline/criteria/",
    "offline/calibration/statistics.py",
    "offline/calibration/scores.py",
    "offline/calibration/scores_file.py",
    "offline/calibration/blend.py",
    "offline/plan/plan.py",
    "offline/plan/recipe.py",
    "offline/plan/protection.py",
    "offline/engines/base.py",
    "offline/finetune/settings.py",
    "offline/finetune/examples.py",
    "offline/finetune/schedule.py",
    "offline/finetune/parts.py",
    "offline/finetune/memory.py",
    "offline/finetune/job.py",
    "offline/finetune/launch.py",
    "offline/finetune/finetune.py",
    "offline/build/export.py",
    "offline/fitness/",
    "offline/lint/",
    "offline/maps/",
    "offline/methods/",
    "offline/recover/recipe.py",
    "offline/results/recovery.py",
)
MAX_LINES = 300
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
OTHERS = sorted(file for room in ("tests", "benchmarks") for file in (ROOT / room).rglob("*.py"))


def within(module: str, allowed: str) -> bool:
    return module == allowed or module.startswith(allowed + ".")


def test_every_room_has_a_floor_and_every_file_a_room() -> None:
    found = {path.name for path in (ROOT / "offline").iterdir() if path.name != "__pycache__"}
    assert found - {"__init__.py", "py.typed"} == {room for rooms in FLOORS for room in rooms}


def test_no_import_runs_up_the_floors() -> None:
    assert upward(graph()) == []


def test_no_modules_import_each_other() -> None:
    assert circles(graph()) == []


@pytest.mark.parametrize(
    ("file", "line", "pair"),
    [
        ("maps/genome.py", "from offline.methods import eep", ("maps.genome", "methods.eep")),
        ("criteria/order.py", "import offline.methods.eep", ("criteria.order", "methods.eep")),
        ("plan/plan.py", "from offline.analysis import use", ("plan.plan", "analysis.use")),
    ],
)
def test_an_import_that_runs_up_or_to_a_neighbour_is_found(
    file: str, line: str, pair: tuple[str, str], tmp_path: Path
) -> None:
    _copy_with(tmp_path, file, f"def f():\n    {line}\n")
    assert upward(graph(tmp_path)) == [(f"offline.{pair[0]}", f"offline.{pair[1]}")]


def test_a_circle_is_found_wherever_the_import_stands(tmp_path: Path) -> None:
    line = "if TYPE_CHECKING:\n    from offline.lottery.play import play\n"
    _copy_with(tmp_path, "lottery/lottery.py", line)
    found = circles(graph(tmp_path))
    assert found == [tuple(f"offline.lottery.{n}" for n in ("lottery", "play", "round"))]


def _copy_with(folder: Path, file: str, lines: str) -> None:
    """Copy the sources and add lines to one file of offline/."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("*.safetensors", "__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    with (folder / "offline" / file).open("a") as text:
        text.write(lines)


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_imports_run_one_way_between_the_rooms(file: Path) -> None:
    room = name_of(file).split("/")[0]
    ours = [m for m in imports(file) if m.split(".")[0] in (*PACKAGES, "tests", "benchmarks")]
    wrong = [m for m in ours if not any(within(m, allowed) for allowed in MAY_IMPORT[room])]
    assert wrong == []


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_only_the_serving_side_imports_vllm(file: Path) -> None:
    if not name_of(file).startswith(MAY_IMPORT_VLLM):
        assert [module for module in imports(file) if within(module, "vllm")] == []


@pytest.mark.parametrize("file", [f for f in SOURCES if name_of(f).startswith(LIGHT)], ids=name_of)
def test_light_modules_import_nothing_heavy_at_import_time(file: Path) -> None:
    found = [m for m in imports(file, at_import_time=True) if m.split(".")[0] in HEAVY]
    assert found == []


@pytest.mark.parametrize("file", [*SOURCES, *OTHERS], ids=name_of)
def test_files_are_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= MAX_LINES


def test_every_room_is_seen() -> None:
    """A renamed folder must not make the tests above pass on nothing."""
    assert {name_of(file).split("/")[0] for file in SOURCES} == set(PACKAGES)
    for allowed in (*MAY_IMPORT_VLLM, *LIGHT):
        assert any(name_of(file).startswith(allowed) for file in SOURCES), allowed
    assert list(imports(ROOT / "vllm_moe_prune" / "plugin.py")).count("sys") == 1
