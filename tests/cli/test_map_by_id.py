"""Routing maps by the names they have on the hub, as commands are given them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.command import invoke, one_error, run
from tests.hub.server import Hub
from tests.sample_maps import build_compact, uniform_map

UNIFORM = [(0, 2, 5, 7)] * 4


@pytest.fixture
def by_folder(hub: Hub, base: Path, tmp_path: Path) -> Path:
    """A map here, which is on the hub as me/map@v1; what is there now is another one."""
    there = tmp_path / "there"
    uniform_map(base, [(1, 2, 3, 4)] * 4).save(there)
    here = tmp_path / "map"
    uniform_map(base, UNIFORM).save(here)
    hub.publish("me/map", here, tag="v1")
    hub.publish("me/map", there)
    hub.publish("Org/Tiny", base)
    return here


def succeed(*arguments: str | Path) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_map_by_id_is_that_of_the_folder(
    hub: Hub, base: Path, by_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    given = (by_folder, "me/map@v1", "me/map")
    exports, results, inspected = [], [], []
    for number, name in enumerate(given):
        out = tmp_path / f"ids-{number}.json"
        succeed("export", name, "--out", out)
        exports.append(out.read_text())
        words = ("--task", task_file, "--limit", "4", "--device", "cpu", "--dtype", "float32")
        said = succeed("eval", "--model", base, "--map", name, *words, "--json")
        results.append(json.loads(said)["items"])
        inspected.append(json.loads(succeed("inspect", name, "--json"))["map"]["digest"])
    for found in (exports, results, inspected):
        assert found[0] == found[1] != found[2]


def test_base_and_map_by_id_are_built(
    hub: Hub, base: Path, by_folder: Path, tmp_path: Path
) -> None:
    succeed("build", "--model", base, "--map", by_folder, "--out", tmp_path / "by-folder")
    succeed("build", "--model", "Org/Tiny", "--map", "me/map@v1", "--out", tmp_path / "by-id")
    one, other = (tmp_path / n / "model.safetensors" for n in ("by-folder", "by-id"))
    assert one.read_bytes() == other.read_bytes()


def test_a_compact_checkpoint_on_the_hub_is_described_without_its_weights(
    hub: Hub, base: Path, tmp_path: Path
) -> None:
    compact = build_compact(base, tmp_path / "compact")
    hub.publish("me/out", compact)
    facts = json.loads(succeed("inspect", "me/out", "--json"))
    local = json.loads(succeed("inspect", compact, "--json"))
    assert facts["kind"] == "pruned checkpoint (compact)"
    for name in ("map", "num_bytes", "expert_bytes", "experts_per_layer", "lint"):
        assert facts[name] == local[name]
    assert hub.sent < 0.2 * facts["num_bytes"]


def test_what_cannot_be_had_or_checked_by_id_is_one_line(
    hub: Hub, base: Path, by_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str | Path) -> str:
        return one_error(*run(*arguments, capsys=capsys))

    hub.publish("me/out", build_compact(base, tmp_path / "compact"))
    assert "me/absent" in refused("check", "me/absent")
    for name, kind in (("me/map", "routing map"), ("me/out", "compact checkpoint")):
        _, said = run("check", name, capsys=capsys)
        assert re.search(rf"^error: {name}@\w+ is a {kind}\n+hint: add --base", said, re.MULTILINE)
    assert list(hub.asked("/cdn/.*pruned_moe")) == []
    build = ("build", "--model", base, "--out", tmp_path / "out")
    assert "no revision 'v9'" in refused(*build, "--map", "me/map@v9")
    assert "no file that is called routing_map.json" in refused(*build, "--map", "Org/Tiny")
