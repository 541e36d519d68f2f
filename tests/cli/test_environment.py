"""What an option sets for its command is not there for the next one of the same process."""

from __future__ import annotations

import os

import click
import pytest
from click.testing import CliRunner

from offline.cli.quiet import QUIET, with_quiet
from offline.cli.verify import with_verify
from vllm_moe_prune.fingerprint import VERIFY


@pytest.mark.parametrize(("option", "name"), [("--quiet", QUIET), ("--verify", VERIFY)])
@pytest.mark.parametrize("before", [None, "0"])
def test_it_lasts_as_long_as_the_command(
    option: str, name: str, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    @with_verify
    def command() -> None:
        click.echo(str(os.environ.get(name)))

    with_quiet(command)
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    for words, said in (([option], "1"), ([], str(before))):
        assert CliRunner().invoke(command, words, catch_exceptions=False).output == f"{said}\n"
    assert os.environ.get(name) == before
