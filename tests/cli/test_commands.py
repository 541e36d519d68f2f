"""The commands as a user meets them: help, flags, what they print and write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from rich.table import Table

from offline.build.build import build
from offline.cli.console import stdout
from offline.cli.lazy import LazyCommand
from offline.cli.main import cli
from tests.command import invoke
from tests.sample_maps import mixed_map, uniform_map
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError

FLAGS: dict[str, list[str]] = json.loads(Path(__file__).with_name("flags.json").read_text())
UNIFORM = [(0, 2, 5, 7)] * 4


def command(path: str) -> click.Command:
    found: click.Command = cli
    for part in path.split():
        assert isinstance(found, click.Group)
        found = loaded(found.commands[part])
    return found


def loaded(found: click.Command) -> click.Command:
    return found.load() if isinstance(found, LazyCommand) else found


def every_command(group: click.Group, prefix: str = "") -> list[str]:
    names = []
    for name, entry in group.commands.items():
        found = loaded(entry)
        names.append(prefix + name)
        if isinstance(found, click.Group):
            names += every_command(found, f"{prefix}{name} ")
    return names


def test_these_are_the_commands() -> None:
    assert sorted(every_command(cli)) == sorted(FLAGS)


@pytest.mark.parametrize("path", FLAGS)
def test_the_flags_are_frozen(path: str) -> None:
    options = [p for p in command(path).params if isinstance(p, click.Option)]
    flags = {name for p in options for name in p.opts} - {"-q", "--quiet"}
    assert sorted(flags) == FLAGS[path]


@pytest.mark.parametrize("path", [path for path in FLAGS if path != "demo"])
def test_every_command_can_be_told_to_be_quiet(path: str) -> None:
    assert "-q, --quiet" in invoke(*path.split(), "--help").output


@pytest.mark.parametrize("path", ["", *FLAGS])
def test_help_has_an_example_of_the_command_itself(path: str) -> None:
    result = invoke(*path.split(), "--help")
    assert result.exit_code == 0
    example = result.output.partition("Example:")[2]
    assert f"vmprune {path}".strip() in " ".join(example.split())


@pytest.mark.parametrize("path", FLAGS)
def test_a_flag_that_takes_a_value_says_what_it_is_or_shows_its_default(path: str) -> None:
    for option in command(path).params:
        if isinstance(option, click.Option) and not option.is_flag:
            assert option.help or option.show_default, option.opts


def test_inspect_tells_a_base_by_its_counts_and_its_bytes(base: Path) -> None:
    facts = json.loads(invoke("inspect", base, "--json").output)
    checkpoint = Checkpoint.open(base)
    assert facts == {
        "path": str(base),
        "kind": "base checkpoint",
        "model_type": "mixtral",
        "num_bytes": checkpoint.num_bytes,
        "expert_bytes": 4 * 8 * 3 * 64 * 96 * 4,
        "experts_per_layer": {"0": 8, "1": 8, "2": 8, "3": 8},
        "top_k": 2,
        "fingerprint": checkpoint.fingerprint().model_dump(),
        "incomplete": {},
        "lint": [],
    }
    text = invoke("inspect", base).output
    assert f"{base}: base checkpoint of mixtral" in text
    assert "of that experts 2.25 MiB" in text


@pytest.mark.parametrize("form", ["plain", "compact"])
def test_inspect_tells_a_pruned_checkpoint_by_its_map(
    form: str, base: Path, tmp_path: Path
) -> None:
    routing_map = uniform_map(base, UNIFORM) if form == "plain" else mixed_map(base)
    build(Checkpoint.open(base), routing_map, tmp_path / "out")
    facts = json.loads(invoke("inspect", tmp_path / "out", "--json").output)
    assert facts["kind"] == f"pruned checkpoint ({form})"
    assert facts["map"]["digest"] == routing_map.digest()
    assert facts["map"]["summary"] == routing_map.summary()
    counts = {str(layer.layer): layer.num_kept for layer in routing_map.layers}
    assert facts["experts_per_layer"] == counts
    assert facts["expert_bytes"] == sum(counts.values()) * 3 * 64 * 96 * 4
    text = invoke("inspect", tmp_path / "out").output
    assert routing_map.summary() in text
    assert "made by by hand, vllm-moe-prune" in text


@pytest.mark.parametrize("name", ["", "routing_map.json"])
def test_inspect_reads_a_map_by_its_folder_or_its_file(
    name: str, base: Path, tmp_path: Path
) -> None:
    mixed_map(base).save(tmp_path)
    facts = json.loads(invoke("inspect", tmp_path / name, "--json").output)
    assert facts["kind"] == "routing map"
    assert facts["map"]["form"] == "compact"
    assert "num_bytes" not in facts
    assert "merged by layers.3.experts" in invoke("inspect", tmp_path / name).output


def test_build_says_what_it_did(base: Path, tmp_path: Path) -> None:
    uniform_map(base, UNIFORM).save(tmp_path / "map")
    result = invoke("build", "--model", base, "--map", tmp_path / "map", "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "plain: 16 of 32 experts in 4 layers" in result.output
    assert "48 tensors dropped, 0 merged" in result.output
    assert result.output.endswith(f"written to {tmp_path / 'out'}\n")
    assert Checkpoint.open(tmp_path / "out").expert_counts() == dict.fromkeys(range(4), 4)


@pytest.mark.parametrize("dry", [True, False])
def test_build_says_it_to_programs_as_well(dry: bool, base: Path, tmp_path: Path) -> None:
    routing_map = uniform_map(base, UNIFORM)
    routing_map.save(tmp_path / "map")
    words = ["build", "--model", base, "--map", tmp_path / "map", "--out", tmp_path / "out"]
    facts = json.loads(invoke(*words, "--json", *(["--dry-run"] if dry else [])).stdout)
    assert facts["digest"] == routing_map.digest()
    assert (facts["dropped"], facts["merged"], facts["form"]) == (48, 0, "plain")
    assert facts["written"] is not dry
    assert (tmp_path / "out").exists() is not dry


def test_tables_in_a_log_lose_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table, ids = Table("layer", "kept"), ", ".join(map(str, range(128)))
    table.add_row("0", ids)
    stdout().print(table)
    assert ids in capsys.readouterr().out


def test_a_dry_run_writes_nothing(base: Path, tmp_path: Path) -> None:
    uniform_map(base, UNIFORM).save(tmp_path / "map")
    arguments: list[Any] = ["--model", base, "--map", tmp_path / "map", "--out", tmp_path / "out"]
    result = invoke("build", *arguments, "--dry-run")
    assert result.exit_code == 0
    assert "48 tensors dropped, 0 merged" in result.output
    assert "written" not in result.output
    assert [file.name for file in tmp_path.iterdir()] == ["map"]


@pytest.mark.parametrize("flag", ["--map", "--allow-other-base", "--device", "--dtype"])
def test_eval_of_a_server_refuses_what_the_server_decides(flag: str, base: Path) -> None:
    value = {"--map": [base], "--device": ["cpu"], "--dtype": ["float32"]}.get(flag, [])
    arguments: list[Any] = ["--model", base, "--task", "sciq", flag, *value]
    with pytest.raises(PruneError, match=f"{flag} does not go with --endpoint"):
        invoke("eval", *arguments, "--endpoint", "http://127.0.0.1:9")


def test_eval_needs_a_server_for_a_name_on_it(base: Path) -> None:
    with pytest.raises(PruneError, match="--served-name needs --endpoint"):
        invoke("eval", "--model", base, "--task", "sciq", "--served-name", "m")
