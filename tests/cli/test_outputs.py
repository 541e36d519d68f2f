"""No command's --force costs what a user has: for each command, each place that was lost once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from loadtest.make_workload import workload_command
from loadtest.out_folder import check_place
from offline.check.check import check_free
from offline.cli.main import cli
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.errors import PruneError

# Command -> its words but --out; BASE is what it reads. What it reads need not be of the right
# kind: it is not opened where the output is refused.
COMMANDS = {
    "score": "score --model BASE",
    "score text": "score --model absent --calibration prose=BASE/text.txt:4",
    "plan": "plan --scores BASE --keep 4",
    "analyze": "analyze --scores BASE",
    "analyze after": "analyze --scores absent --after BASE",
    "analyze map": "analyze --scores absent --map BASE",
    "build": "build --model BASE --map absent",
    "build map": "build --model absent --map BASE",
    "compress": "compress --model BASE --keep 4 --method eep",
    "compress oneshot": "compress --model absent --keep 4 --method oneshot --scores BASE",
    "compress text": "compress --model absent --keep 4 --task sciq:2,text:BASE/text.txt",
    "compress lottery": "compress --model BASE --keep 4 --method lottery",
    "recipe": "compress --recipe BASE/recipe.yaml --keep 4",
    "recover": "recover --model BASE --task sciq",
    "recover base": "recover --model absent --base BASE --task sciq",
    "recover data": "recover --model absent --data BASE/text.txt",
    "import-eep": "import-eep BASE/text.txt",
    "import-eep model": "import-eep absent --model BASE",
    "export": "export BASE",
}
ALL = {**COMMANDS, "demo model": "demo model"}
WITH_RUN = ("compress", "compress oneshot", "compress lottery", "recipe", "recover")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = make_tiny_mixtral(tmp_path / "models" / "base", layers=1)
    (folder / "text.txt").write_text("text")
    (folder / "recipe.yaml").write_text("model: absent\n")
    return folder


def words_of(name: str, base: Path, out: Path) -> list[str]:
    words = [word.replace("BASE", str(base)) for word in ALL[name].split()]
    return [*words, "--out", str(out), "--force"]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return all that is below a folder."""
    found = sorted(folder.rglob("*"))
    return {str(file): file.read_bytes() if file.is_file() else None for file in found}


def refused(name: str, base: Path, out: Path) -> PruneError:
    """Run a command that must be refused and must change nothing."""
    before = tree(base.parents[1])
    done = CliRunner().invoke(cli, words_of(name, base, out))
    assert isinstance(done.exception, PruneError), (done.output, done.exception)
    assert tree(base.parents[1]) == before
    assert "\n" not in done.exception.message and done.exception.hint
    return done.exception


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("place", ["base", "parent"])
def test_the_base_is_never_replaced(name: str, place: str, base: Path) -> None:
    out = base if place == "base" else base.parent
    message = refused(name, base, out).message
    assert "would replace" in message or name == "export"


@pytest.mark.parametrize("name", ALL)
def test_a_users_folder_is_never_replaced(name: str, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.txt").write_text("mine")
    (out / "a.txt").write_text("mine")
    message = refused(name, base, out).message
    expected = f"{out / 'a.txt'} was not written by vmprune and is not replaced"
    assert message == (f"{out} is a folder" if name == "export" else expected)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("inside", [False, True])
def test_a_users_file_and_a_link_are_never_replaced(
    name: str, inside: bool, base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    refused(name, base, out)
    out.unlink()
    (tmp_path / "there").mkdir()
    out.symlink_to(tmp_path / ("there" if inside else "absent"))
    assert refused(name, base, out).message == f"{out} is a symbolic link"


@pytest.mark.parametrize("name", WITH_RUN)
def test_a_users_folder_of_the_runs_name_is_never_touched(
    name: str, base: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.run").mkdir()
    (tmp_path / "out.run" / "notes.txt").write_text("mine")
    message = refused(name, base, tmp_path / "out").message
    assert "out.run" in message and "notes.txt" in message


@pytest.mark.parametrize("name", WITH_RUN)
def test_an_input_in_the_run_is_refused(name: str, base: Path) -> None:
    run = base.with_name("out.run")
    run.mkdir()
    moved = base.rename(run / "scores")
    before = tree(run)
    done = CliRunner().invoke(cli, words_of(name, moved, base.with_name("out")))
    assert isinstance(done.exception, PruneError)
    assert "lies in" in done.exception.message and tree(run) == before


_ALL_AT_ONCE = """
import sys
from click.testing import CliRunner
from offline.cli.main import cli
for line in sys.stdin.read().splitlines():
    done = CliRunner().invoke(cli, line.split("\\t"))
    assert type(done.exception).__name__ == "PruneError", (line, done.exception)
    assert "torch" not in sys.modules, line
"""


def test_all_refuse_before_torch_is_imported(base: Path) -> None:
    lines = "\n".join("\t".join(words_of(name, base, base)) for name in ALL)
    command = [sys.executable, "-c", _ALL_AT_ONCE]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["check.json", "log"])
def test_check_does_not_write_over_a_users_file(name: str, tmp_path: Path) -> None:
    log = tmp_path / "out.check.log"
    file = log if name == "log" else tmp_path / name
    file.write_text("mine")
    with pytest.raises(PruneError, match=f"{file.name} was not written by vmprune"):
        check_free(tmp_path, log)
    file.write_text('{"checks": [], "served_as": "vllm"}')
    check_free(tmp_path, log)


def test_a_workload_is_written_over_workloads_alone(tmp_path: Path) -> None:
    source, out = tmp_path / "source.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a"}\n')
    out.write_text("mine\n")
    for place in (source, out):
        before = place.read_text()
        done = CliRunner().invoke(workload_command, [str(source), "--out", str(place)])
        assert done.exit_code == 1 and place.read_text() == before
    out.unlink()
    for _ in range(2):
        done = CliRunner().invoke(workload_command, [str(source), "--out", str(out)])
        assert done.exit_code == 0, done.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.jsonl", "source.jsonl"]


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("compare.json", '{"lifetimes": [], "ratios": [], "settings": {}}'),
        ("compare.md", "# Serving, candidate against base\n"),
        ("rounds/1-base/server.log", None),
        ("rounds/1-base/users-8.jsonl", None),
        ("rounds/notes.txt", ""),
        ("other.txt", None),
    ],
)
def test_a_comparison_is_written_over_comparisons_alone(
    name: str, ours: str | None, tmp_path: Path
) -> None:
    check_place(tmp_path / "absent")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    if ours is None:
        check_place(tmp_path)
        return
    with pytest.raises(PruneError, match=f"{Path(name).name} was not written by a comparison"):
        check_place(tmp_path)
    (tmp_path / name).write_text(ours)
    if ours:
        check_place(tmp_path)
