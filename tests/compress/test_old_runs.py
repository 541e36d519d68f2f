"""Runs that version 0.1 began go on: what it wrote down is read as what is written down now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offline.compress.prepared import Prepared
from offline.compress.recipe.reading import recipe_of, upgraded
from offline.engines.local.transformers import TransformersEngine
from tests.compress.test_compress import SETTINGS, run
from tests.sample_runs import log_of

# Flags, and the settings that version 0.1 kept of them beside the base and the data.
OLD: dict[str, Any] = json.loads(Path(__file__).with_name("settings-0.1.json").read_text())


@pytest.mark.parametrize("name", OLD)
def test_old_settings_are_those_of_the_same_flags(name: str) -> None:
    flags = OLD[name]["flags"]
    same = recipe_of({"model": "base", **flags}).settings()
    if flags.get("preset") == "paper":
        del same["finalists"]  # it was never read, and the preset's 20 are what the flag says
    assert upgraded(OLD[name]["recipe"]) == same


@pytest.mark.parametrize("change", [{"seed": 4}, {"task": "other.yaml"}, {"search_items": 9}])
def test_other_old_settings_are_others(change: dict[str, Any]) -> None:
    old = OLD["eep"]
    same = recipe_of({"model": "base", **old["flags"]}).settings()
    assert upgraded(old["recipe"] | change) != same


@pytest.mark.parametrize("identity", [{}, {"recipe": 1}, {"recipe": {"keep": "x"}}, {"recipe": {}}])
def test_what_no_version_wrote_stays_as_it_is(identity: dict[str, Any]) -> None:
    assert Prepared.upgrade(identity) == identity


def test_a_run_of_version_0_1_goes_on_with_what_it_has(
    engine: TransformersEngine, model: Path, task_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(engine, model, task_file, out)
    folder = out.with_name("out.run")
    before = log_of(out)
    file = folder / "settings.json"
    identity = json.loads(file.read_text())
    identity["recipe"] = OLD["eep"]["recipe"] | SETTINGS | {"task": str(task_file)}
    identity["recipe"] = {k: v for k, v in identity["recipe"].items() if k != "device"}
    file.write_text(json.dumps(identity))
    out.rename(tmp_path / "before")
    run(engine, model, task_file, out)
    assert log_of(out) == before
