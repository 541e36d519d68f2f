"""Every input that ever failed, with what must be said of it."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.ground import make_ground
from tests.fuzz.judge import command
from tests.fuzz.running import run
from tests.fuzz.targets import TARGETS

CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ground(tmp_path_factory.mktemp("ground"))


def content_of(case: dict[str, Any], whole: bytes) -> bytes:
    """Return a case's file: text, base64, repeated text, or entries in place of the whole one's."""
    if "base64" in case:
        return base64.b64decode(case["base64"])
    if "repeat" in case:
        begin, times, end = case["repeat"]
        return (begin * times + end * times).encode()
    if "change" in case:
        tree = json.loads(whole)
        for path, value in case["change"]:
            *outer, last = path
            node = tree
            for key in outer:
                node = node[key]
            node[last] = value
        return json.dumps(tree).encode()
    if "header" in case:
        length = int.from_bytes(whole[:8], "little")
        tree = json.loads(whole[8 : 8 + length])
        for name, entry in case["header"].items():
            tree[name] = {**tree.get(name, {}), **entry}
        text = json.dumps(tree).encode()
        return len(text).to_bytes(8, "little") + text + whole[8 + length :]
    return str(case["content"]).encode()


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_it_is_said(file: Path, ground: Path) -> None:
    case = json.loads(file.read_text())
    target = TARGETS[case["target"]]
    content = content_of(case, (ground / target.file).read_bytes())
    outcome = run(target, ground, content)
    assert outcome.wrong == ""
    assert outcome.status == case.get("status", 1)
    assert case["says"] in outcome.err + outcome.out


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "links in a circle", "a dangling link"])
@pytest.mark.parametrize("name", ["config.json, inspect", "a map, build", "scores.json, plan"])
def test_what_is_no_file_is_one_line(name: str, kind: str, ground: Path) -> None:
    target = TARGETS[name]
    file = ground / target.file
    content = file.read_bytes()
    file.unlink()
    try:
        if kind == "a folder":
            file.mkdir()
        elif kind == "a pipe":
            os.mkfifo(file)
        else:
            file.symlink_to(file.name if kind == "links in a circle" else "absent")
        outcome = target.act(ground)
    finally:
        shutil.rmtree(file, ignore_errors=True) if kind == "a folder" else file.unlink()
        file.write_bytes(content)
    assert outcome.wrong == ""
    assert outcome.status == 1


@pytest.mark.parametrize(
    "words",
    [
        ["compress", "--model", "@base", "--keep", "2", "--out", "@" + "x" * 252],
        ["build", "--model", "@base", "--map", "@map", "--out", "@" + "x" * 300],
        ["build", "--model", "@base", "--map", "@map", "--out", "@made", "--max-shard-gib", "nan"],
        ["build", "--model", "@base", "--map", "\x1b[31m", "--out", "@made"],
        ["inspect", "@" + "x" * 5000],
        ["plan", "--scores", "@scores", "--criterion", "[/x]", "--keep", "4", "--out", "@made"],
        [
            "plan",
            "--scores",
            "@scores",
            "--criterion",
            "\x1b]0;x\x07",
            "--keep",
            "4",
            "--out",
            "@m",
        ],
    ],
    ids=lambda words: words[0] + words[-1][:12].encode("unicode_escape").decode(),
)
def test_a_command_line_is_one_line(words: list[str], ground: Path) -> None:
    outcome = command(*(str(ground / w[1:]) if w.startswith("@") else w for w in words))
    assert outcome.wrong == ""
    assert outcome.status in (1, 2)


def test_a_name_with_brackets_is_printed_as_it_is(ground: Path) -> None:
    out = ground / "pruned[keep4]"
    words = ["plan", "--scores", ground / "scores", "--criterion", "min-ean", "--keep", "2"]
    outcome = command(*words, "--out", out)
    shutil.rmtree(out)
    assert (outcome.status, outcome.wrong) == (0, "")
    assert f"written to {out}\n" in outcome.out
