"""Every refusal that can be known at the start comes before anything heavy is imported.

wrong_words.txt has command lines, each with what is said of it below. They run in one process in
which torch and its like cannot be imported, and no other process can be started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from offline.cli import main as main_module
from tests.cli.wrong_inputs import write_inputs
from tests.command import one_error, run

ROOT = Path(__file__).parents[2]
CASES = [
    tuple(part.strip() for part in block.split("\n", 1))
    for block in (Path(__file__).parent / "wrong_words.txt").read_text().strip().split("\n\n")
]
COMMANDS = set(main_module.cli.commands) | {"compare"}
OF_NO_FILE = {"criteria"}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each command line came to."""
    folder = tmp_path_factory.mktemp("wrong")
    write_inputs(folder)
    lines = tmp_path_factory.mktemp("lines") / "lines.json"
    lines.write_text(json.dumps([line for line, _ in CASES]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.words_child", str(lines)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "VMPRUNE_CACHE": str(lines.parent / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return {line: one for (line, _), one in zip(CASES, found, strict=True)}


@pytest.mark.parametrize(("line", "message"), CASES, ids=[line for line, _ in CASES])
def test_it_is_said_before_torch_is_imported(
    line: str, message: str, told: dict[str, dict[str, Any]]
) -> None:
    one = told[line]
    assert one["status"] in (1, 2), one
    assert message in one["said"]
    assert one["said"].count("\n") <= (2 if one["status"] == 1 else 5), one["said"]
    assert one["new"] == []


def test_every_command_has_some_and_each_line_is_there_once() -> None:
    lines = [line for line, _ in CASES]
    assert {line.split()[0] for line in lines} == COMMANDS - OF_NO_FILE
    assert len(lines) == len(set(lines))


def test_a_file_that_may_not_be_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreadable(**_: Any) -> None:
        raise PermissionError(13, "Permission denied", "scores.json")

    monkeypatch.setattr(main_module, "cli", unreadable)
    status, said = run(capsys=capsys)
    assert one_error(status, said) == "scores.json: Permission denied"
    assert "hint" not in said  # which was about writing


def test_a_hint_stands_right_below_its_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, said = run("plan", "--scores", tmp_path, "--keep", "4", "--out", "out", capsys=capsys)
    assert [line.partition(":")[0] for line in said.splitlines()] == ["error", "hint"]
