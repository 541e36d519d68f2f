"""Who may import whom (docs/decisions and CONTRIBUTING.md say why), and how long a file may be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.floors import FLOORS, PACKAGES, ROOT, circles, graph, imports, name_of, upward

MAY_IMPORT = {
    "vllm_moe_prune": ("vllm_moe_prune",),
    "offline": (
        *("offline", "vllm_moe_prune"),
        *("serve.command", "serve.server", "serve.logs", "serve.process"),
        "serve.secrets",
    ),
    "serve": ("serve", "vllm_moe_prune"),
    "loadtest": (
        "loadtest",
        "serve.server",
        "serve.describe",
        "serve.process",
        "serve.secrets",
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


def wrong_imports(allowed: Callable[[str, str], bool], **given: bool) -> dict[str, list[str]]:
    """Return what each source imports that is not ``allowed(its name, the module's)``."""
    found = {}
    for file in SOURCES:
        name = name_of(file)
        wrong = [module for module in imports(file, **given) if not allowed(name, module)]
        found |= {name: wrong} if wrong else {}
    return found


def test_imports_run_one_way_between_the_rooms() -> None:
    def allowed(name: str, module: str) -> bool:
        if module.split(".")[0] not in (*PACKAGES, "tests", "benchmarks"):
            return True
        return any(within(module, one) for one in MAY_IMPORT[name.split("/")[0]])

    assert wrong_imports(allowed) == {}


def test_only_the_serving_side_imports_vllm() -> None:
    def allowed(name: str, module: str) -> bool:
        return name.startswith(MAY_IMPORT_VLLM) or not within(module, "vllm")

    assert wrong_imports(allowed) == {}


def test_light_modules_import_nothing_heavy_at_import_time() -> None:
    def allowed(name: str, module: str) -> bool:
        return not name.startswith(LIGHT) or module.split(".")[0] not in HEAVY

    assert wrong_imports(allowed, at_import_time=True) == {}


@pytest.mark.parametrize(
    ("file", "line", "test"),
    [
        ("loadtest/client.py", "import offline", test_imports_run_one_way_between_the_rooms),
        ("offline/plan/plan.py", "import vllm", test_only_the_serving_side_imports_vllm),
        (
            "vllm_moe_prune/rewrite.py",
            "import torch",
            test_light_modules_import_nothing_heavy_at_import_time,
        ),
    ],
)
def test_a_wrong_import_is_named(
    file: str, line: str, test: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = line.split()[1]
    monkeypatch.setitem(globals(), "imports", lambda f, **_: [module] if name_of(f) == file else [])
    with pytest.raises(AssertionError, match=module):
        test()


def test_files_are_short() -> None:
    lengths = {name_of(file): len(file.read_text().splitlines()) for file in (*SOURCES, *OTHERS)}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}
