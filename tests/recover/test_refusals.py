"""What cannot work is refused in one line, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from offline.cli.main import cli
from tests.command import one_error, run
from tests.tiny import make_tiny_mixtral, random_map
from vllm_moe_prune.checkpoint import COMPACT_FOLDER


def refused(capsys: pytest.CaptureFixture[str], model: Path, out: Path, *more: str | Path) -> str:
    capsys.readouterr()  # what making the models had to say
    status, err = run("recover", "--model", model, "--out", out, *more, capsys=capsys)
    assert not out.exists() and not out.with_name(out.name + ".partial").exists()
    return one_error(status, err)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "give either --task (its training items) or --data (instructions)"),
        (["--task", "sciq", "--data", "x.jsonl"], "give either --task"),
        (["--task", "no_such"], "unknown task 'no_such'"),
        (["--task", "sciq@5"], "--task: sciq@5 says how many examples there are"),
        (["--task", "demo_text"], "--task: demo_text is plain text"),
        (["--data", "absent.jsonl"], "no text file at absent.jsonl"),
        (["--data", "absent.jsonl", "--base", "b"], "--base is there to be compared with"),
        (["--task", "sciq", "--steps", "5", "--epochs", "1"], "--steps and --epochs both say"),
        (["--task", "sciq", "--learning-rate", "0"], "learning_rate"),
        (["--task", "sciq", "--length", "1"], "length"),
    ],
)
def test_flags_that_cannot_work(
    more: list[str], said: str, pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, pruned, tmp_path / "out", *more)


def test_a_task_that_is_named_twice(
    pruned: Path, tasks: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = f"{tasks['colours']},{tasks['colours']}"
    said = refused(capsys, pruned, tmp_path / "out", "--task", twice)
    assert said == "--task: task colours is named twice"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no text"),
        ('{"prompt": "a", "response": "b"}\n{"prompt"', "line 2 is not JSON"),
    ],
)
def test_a_file_of_instructions_that_is_none(
    content: str, said: str, pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.jsonl").write_text(content)
    assert said in refused(capsys, pruned, tmp_path / "out", "--data", tmp_path / "data.jsonl")


@pytest.mark.parametrize("flag", ["--model", "--base"])
def test_a_compact_checkpoint(
    flag: str,
    pruned: Path,
    tasks: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import numpy as np

    base = make_tiny_mixtral(tmp_path / "tiny", experts=4)
    compact = tmp_path / "compact"
    (compact / COMPACT_FOLDER).mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        folder = compact / COMPACT_FOLDER if name.endswith("tensors") else compact
        (folder / name).write_bytes((base / name).read_bytes())
    random_map(base, np.random.default_rng(0), kinds=("w_rm",)).save(compact)
    model = compact if flag == "--model" else pruned
    more = ("--base", compact) if flag == "--base" else ()
    said = refused(capsys, model, tmp_path / "out", "--task", tasks["colours"], *more)
    assert said == f"{flag}: {compact} is a compact checkpoint, which only vLLM can open"


def test_a_base_that_it_was_not_pruned_from(
    pruned: Path, tasks: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_tiny_mixtral(tmp_path / "other", experts=4, seed=7)
    more = ("--task", tasks["colours"], "--base", other)
    assert f"{pruned} was not pruned from {other}" in refused(
        capsys, pruned, tmp_path / "out", *more
    )


def test_an_output_that_is_there_or_would_replace_the_model(
    pruned: Path, tasks: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("recover", "--model", pruned, "--task", tasks["colours"], "--out", pruned)
    status, err = run(*words, capsys=capsys)
    assert one_error(status, err) == f"{pruned} already exists"
    status, err = run(*words, "--force", capsys=capsys)
    assert one_error(status, err) == f"{pruned} would replace {pruned}"
    assert (pruned / "model.safetensors").exists()


def test_eval_takes_examples_by_a_flag_or_by_the_name_but_not_both(
    pruned: Path, tasks: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(tasks["colours"])
    words = ["eval", "--model", str(pruned), "--limit", "10", "--json", "--task"]
    by_flag, by_name, without = (
        CliRunner().invoke(cli, [*words, *more], catch_exceptions=False).stdout
        for more in ([name, "--shots", "3"], [f"{name}@3"], [name])
    )
    margins = [_margins(text) for text in (by_flag, by_name, without)]
    assert margins[0] == margins[1] != margins[2]
    status, err = run(*words, f"{name}@3", "--shots", "3", capsys=capsys)
    assert "--shots 3 both say how many examples there are" in one_error(status, err)


def _margins(text: str) -> list[float]:
    import json

    return [item["margin"] for item in json.loads(text)["items"]]
