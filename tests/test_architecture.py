"""Who may import whom (docs/decisions and CONTRIBUTING.md say why), and how long a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("vllm_moe_prune", "offline", "serve", "loadtest")
MAY_IMPORT = {
    "vllm_moe_prune": ("vllm_moe_prune",),
    "offline": ("offline", "vllm_moe_prune", "serve.server", "serve.logs"),
    "serve": ("serve", "vllm_moe_prune"),
    "loadtest": ("loadtest", "serve.server", "serve.describe", "vllm_moe_prune.errors"),
}
MAY_IMPORT_VLLM = (
    "vllm_moe_prune/loader.py",
    "vllm_moe_prune/live_loader.py",
    "vllm_moe_prune/vllm_compat.py",
    "vllm_moe_prune/plugin.py",
    "offline/engines/vllm",
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
    "offline/methods/",
    "offline/recover/recipe.py",
    "offline/results/recovery.py",
)
MAX_LINES = 300
SOURCES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
OTHERS = sorted(file for room in ("tests", "benchmarks") for file in (ROOT / room).rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imports(file: Path, *, at_import_time: bool = False) -> Iterator[str]:
    """Yield the modules that a file imports, whole names; from-imports as the module."""
    tree = ast.parse(file.read_text())
    for node in _top_level(tree) if at_import_time else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)}: relative import"
            assert node.module is not None
            yield node.module


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run on import: not inside functions, not for type checkers only."""
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from (n for n in ast.walk(node) if isinstance(n, ast.stmt))


def within(module: str, allowed: str) -> bool:
    return module == allowed or module.startswith(allowed + ".")


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_imports_run_one_way_between_the_rooms(file: Path) -> None:
    room = name_of(file).split("/")[0]
    ours = [m for m in imports(file) if m.split(".")[0] in (*ROOMS, "tests", "benchmarks")]
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
    assert {name_of(file).split("/")[0] for file in SOURCES} == set(ROOMS)
    for allowed in (*MAY_IMPORT_VLLM, *LIGHT):
        assert any(name_of(file).startswith(allowed) for file in SOURCES), allowed
    assert list(imports(ROOT / "vllm_moe_prune" / "plugin.py")).count("sys") == 1
