"""Listing the commands imports none of them; running one imports that one."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from offline.cli.lazy import LazyCommand
from offline.cli.main import cli

LISTED = sorted(cli.commands)
# What the list of commands has no use for, and what no command's help has a use for.
NOT_FOR_THE_LIST = {"pydantic", "rich", "numpy"}
NOT_FOR_HELP = {"torch", "transformers", "vllm", "lm_eval", "datasets", "accelerate", "scipy"}
NOT_FOR_HELP |= {"plotly", "jinja2", "ray", "locust", "safetensors.torch", "yaml"}


def loaded_after(*commands: list[str]) -> list[set[str]]:
    """Run the command lines in one new process; the modules that are there after each."""
    code = (
        "import contextlib, io, sys\n"
        "from offline.cli.main import cli\n"
        "found = []\n"
        f"for words in {list(commands)!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        cli(words, standalone_mode=False)\n"
        "    assert 'Usage: ' in out.getvalue(), words\n"
        "    found.append(sorted(sys.modules))\n"
        "import json\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [set(modules) for modules in json.loads(done.stdout)]


@pytest.mark.parametrize("name", LISTED)
def test_the_line_that_lists_a_command_is_the_command_s_own(name: str) -> None:
    entry = cli.commands[name]
    assert isinstance(entry, LazyCommand)
    command = entry.load()
    for width in (45, 60, 1000):
        assert entry.get_short_help_str(width) == command.get_short_help_str(width)


def test_the_list_shows_every_command_and_imports_none() -> None:
    (loaded,) = loaded_after(["--help"])
    ours = {module for module in loaded if module.startswith("offline.")}
    assert ours == {
        f"offline.cli{name}"
        for name in ("", ".environment", ".lazy", ".main", ".quiet", ".signals")
    }
    assert loaded & (NOT_FOR_THE_LIST | NOT_FOR_HELP) == set()
    shown = CliRunner().invoke(cli, ["--help"]).output
    assert [name for name in LISTED if f"\n  {name} " not in shown] == []
    assert "Choose experts by a criterion from saved scores, and" in shown


def test_no_command_s_help_imports_what_is_heavy() -> None:
    loaded = loaded_after(*([name, "--help"] for name in LISTED), ["demo", "model", "--help"])
    assert {name: found & NOT_FOR_HELP for name, found in zip(LISTED, loaded, strict=False)} == {
        name: set() for name in LISTED
    }


def test_a_misspelt_command_is_refused_with_the_one_that_was_meant() -> None:
    done = CliRunner().invoke(cli, ["compres"])
    assert done.exit_code == 2
    assert "No such command 'compres'" in done.output
    assert "compress" in done.output.replace("'compres'", "")


def test_the_command_itself_is_run_and_completed() -> None:
    context = click.Context(cli)
    name, command, rest = cli.resolve_command(context, ["report", "OUT"])
    assert (name, rest) == ("report", ["OUT"])
    assert command is not None
    assert not isinstance(command, LazyCommand)
    found = cli.shell_complete(context, "re")
    assert [item.value for item in found] == ["recover", "report"]
