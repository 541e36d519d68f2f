"""Running `vmprune` in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from offline.cli.main import cli, main


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)


def run(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run `vmprune` in this process and return status and stderr."""
    status = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vmprune", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
    return status, capsys.readouterr().err


def one_error(status: int, stderr: str) -> str:
    """Return the error line, after checking that it is the only thing said but for a hint."""
    lines = [line for line in stderr.splitlines() if line]
    assert status == 1, stderr
    assert lines[0].startswith("error: "), stderr
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), stderr
    return lines[0].removeprefix("error: ")
