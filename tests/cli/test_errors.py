"""Bad input, in a real process: one line, a hint, status 1, no traceback and nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from offline.cli import main as main_module
from tests.command import one_error, run
from tests.sample_maps import uniform_map
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import INDEX_FILE
from vllm_moe_prune.routing_map import MAP_FILE

UNIFORM = [(0, 2, 5, 7)] * 4
SHARD = "model-00001-of-*.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A base of its own, to be damaged."""
    return make_tiny_mixtral(tmp_path / "model", layers=4, shards=3)


@pytest.fixture
def routing_map(base: Path, tmp_path: Path) -> Path:
    uniform_map(base, UNIFORM).save(tmp_path / "map")
    return tmp_path / "map"


def _missing_shard(model: Path) -> None:
    next(model.glob(SHARD)).unlink()


def _truncated_shard(model: Path) -> None:
    file = next(model.glob(SHARD))
    file.write_bytes(file.read_bytes()[:-1])


def _absent_tensor(model: Path) -> None:
    index = json.loads((model / INDEX_FILE).read_text())
    index["weight_map"]["model.extra.weight"] = next(iter(index["weight_map"].values()))
    (model / INDEX_FILE).write_text(json.dumps(index))


def _other_family(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))


def _no_weights(model: Path) -> None:
    for file in model.glob("*.safetensors*"):
        file.unlink()


DAMAGED: list[tuple[Callable[[Path], None], str]] = [
    (_missing_shard, "is missing"),
    (_truncated_shard, "is truncated or damaged"),
    (_absent_tensor, "names tensor model.extra.weight, which is not in"),
    (_other_family, "model type 'llama' is not supported"),
    (_no_weights, "has no safetensors weights"),
]


@pytest.mark.parametrize("verb", ["build", "compress", "inspect"])
@pytest.mark.parametrize(("damage", "message"), DAMAGED, ids=[d.__name__ for d, _ in DAMAGED])
def test_a_damaged_model_is_one_line(
    damage: Callable[[Path], None],
    message: str,
    verb: str,
    model: Path,
    routing_map: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(model)
    before = sorted(tmp_path.rglob("*"))
    arguments: dict[str, list[Any]] = {
        "build": ["--model", model, "--map", routing_map, "--out", tmp_path / "out"],
        "compress": ["--model", model, "--keep", 4, "--out", tmp_path / "out"],
        "inspect": [model],
    }
    assert message in one_error(*run(verb, *arguments[verb], capsys=capsys))
    assert sorted(tmp_path.rglob("*")) == before


def _layer(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(fields: dict[str, Any]) -> None:
        fields["layers"][1] |= changes

    return change


def _top(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields.update(changes)


def _base(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields["base"].update(changes)


BAD_MAPS: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (_layer(experts={"kept": [0, 2, 2, 7]}), "layer 1: experts: expert 2 is listed twice"),
    (_layer(experts={"kept": [0, 2, 5, 8]}), "layer 1: experts: expert 8 is out of range 0..7"),
    (_layer(top_k=5), "layer 1: top_k 5 is more than the 4 experts kept"),
    (_base(routers="sha256:other"), "made for another base (tiny): the routers hash differs"),
    (_base(config="sha256:other"), "made for another base (tiny): the config hash differs"),
    (_top(schema_version=4), "has schema_version 4, this program reads up to 3"),
    (_top(colour="red"), "colour: Extra inputs are not permitted"),
    (lambda fields: fields["layers"].pop(), "says nothing of layer 3, which has experts"),
]


@pytest.mark.parametrize(("change", "message"), BAD_MAPS, ids=[m for _, m in BAD_MAPS])
def test_a_bad_map_is_one_line(
    change: Callable[[dict[str, Any]], None],
    message: str,
    base: Path,
    routing_map: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fields = json.loads((routing_map / MAP_FILE).read_text())
    change(fields)
    (routing_map / MAP_FILE).write_text(json.dumps(fields))
    arguments: list[Any] = ["--model", base, "--map", routing_map, "--out", tmp_path / "out"]
    assert one_error(*run("build", *arguments, capsys=capsys)).endswith(message)
    assert [file.name for file in tmp_path.iterdir()] == ["map"]


@pytest.mark.parametrize("verb", ["build", "compress"])
def test_an_output_that_exists_is_refused(
    verb: str,
    base: Path,
    routing_map: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "out").mkdir()
    arguments: list[Any] = ["--model", base, "--out", tmp_path / "out"]
    arguments += ["--map", routing_map] if verb == "build" else ["--keep", 4]
    assert one_error(*run(verb, *arguments, capsys=capsys)) == f"{tmp_path / 'out'} already exists"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["map", "out"]
    assert list((tmp_path / "out").iterdir()) == []


def test_eval_refuses_an_unknown_task_split_or_device(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common: list[Any] = ["eval", "--model", base, "--task"]
    assert one_error(*run(*common, "nope", capsys=capsys)) == "unknown task 'nope'"
    split = run(*common, "sciq", "--split", "dev", capsys=capsys)
    assert one_error(*split) == "unknown split 'dev'"
    device = run(*common, "sciq", "--device", "abacus", capsys=capsys)
    assert one_error(*device) == "unknown device 'abacus'"


def test_inspect_says_what_a_path_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = one_error(*run("inspect", tmp_path, capsys=capsys))
    assert error == f"{tmp_path} has neither config.json nor routing_map.json"
    error = one_error(*run("inspect", tmp_path / "absent", capsys=capsys))
    assert error == f"{tmp_path / 'absent'} is neither a checkpoint folder nor a routing map"


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(**_: Any) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(main_module, "cli", lacking)
    assert one_error(*run(capsys=capsys)) == "this command needs torch"


def vmprune(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    code = "from offline.cli.main import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_in_a_process_of_its_own_an_error_is_status_1_and_one_line(tmp_path: Path) -> None:
    result = vmprune("inspect", tmp_path)
    assert one_error(result.returncode, result.stderr).endswith("config.json nor routing_map.json")
    assert (result.stdout, "Traceback" in result.stderr) == ("", False)


def test_a_file_too_large_for_the_disk_is_one_line(
    base: Path, routing_map: Path, tmp_path: Path
) -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
        "from offline.cli.main import main; main()"
    )
    arguments: list[Any] = ["--model", base, "--map", routing_map, "--out", tmp_path / "out"]
    command = [sys.executable, "-c", code, "build", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 1
    assert "error: output: File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["map"]


def test_a_misspelt_flag_is_status_2_with_the_usage() -> None:
    result = vmprune("inspect", "--jsn")
    assert result.returncode == 2
    assert "No such option" in result.stderr
    assert "Traceback" not in result.stderr


_LOADED = "print(sorted({m.split('.')[0] for m in __import__('sys').modules}))"
HEAVY = {"torch", "transformers", "vllm", "lm_eval", "datasets", "accelerate", "scipy", "plotly"}
LIGHT = {
    "help": "from offline.cli.main import cli; cli(['--help'], standalone_mode=False)",
    "compress-help": (
        "from offline.cli.main import cli; cli(['compress', '--help'], standalone_mode=False)"
    ),
    "register": "from vllm_moe_prune.plugin import register; register(); register()",
}


@pytest.mark.parametrize("case", LIGHT)
def test_help_and_the_plugin_import_nothing_heavy(case: str) -> None:
    command = [sys.executable, "-c", f"{LIGHT[case]}\n{_LOADED}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=_plain())
    loaded = set(names_in(result.stdout.splitlines()[-1]))
    assert "vllm_moe_prune" in loaded
    assert loaded & HEAVY == set()


def _plain() -> dict[str, str]:
    """An environment without what makes Python import more at its start (coverage, debuggers)."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("COV", "PYTHONSTARTUP"))}


def names_in(text: str) -> list[str]:
    names: list[str] = json.loads(text.replace("'", '"'))
    return names


def test_the_version_is_the_package_s() -> None:
    from vllm_moe_prune import __version__

    assert CliRunner().invoke(main_module.cli, ["--version"]).output == (
        f"vmprune, version {__version__}\n"
    )
