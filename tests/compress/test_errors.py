"""What `vmprune compress` refuses before any work: one line that names the flag and the rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.command import one_error, run

COMPRESS: list[tuple[list[str], str]] = [
    (["--keep", "4", "--task", "sciqq"], "unknown task 'sciqq'"),
    (["--keep", "4", "--task", "own.yaml"], "no task file at own.yaml"),
    (["--keep", "9"], "--keep 9: layer 0 has 8 experts"),
    (["--keep", "1"], "--top-k 2 does not fit 1 kept experts"),
    (["--keep", "4", "--groups", "none"], "--groups 'none' is neither a number nor `layer`"),
    ([], "settings: give one of --keep (experts per layer), --ratio and --budget (in all layers)"),
    (
        ["--keep", "4", "--budget", "16"],
        "settings: give one of --keep (experts per layer), --ratio and --budget (in all layers)",
    ),
    (
        ["--budget", "6"],
        "--budget 6 is less than the 8 experts that 4 layers keep at least (--floor 1, and what "
        "--top-k activates)",
    ),
    (["--budget", "40"], "--budget 40: the model has 32 experts in all"),
    (
        ["--budget", "16", "--method", "frequency"],
        "settings: --budget is eep and oneshot's; this is frequency",
    ),
    (["--keep", "4", "--top-k", "0-9:1"], "--top-k 0-9:1: no layer 9; layers 0 to 3 have experts"),
    (
        ["--keep", "4", "--compare", "magic"],
        "settings: --compare: 'magic' is none of random, frequency, soft_activation, naee, none, "
        "nor a criterion such as min-ean",
    ),
    (["--keep", "4", "--task", "sciq:x"], "task sciq has no metric 'x'"),
    (["--keep", "4", "--task", "text:no.txt"], "no text file at no.txt"),
    (
        ["--keep", "4", "--phases", "merge", "--no-seeding"],
        "merging alone needs maps to begin with where experts are dropped",
    ),
    (
        ["--keep", "4", "--fitness", "margin", "--task", "lambada"],
        "task lambada has no choices, so no margin",
    ),
    (
        ["--keep", "4", "--engine", "vllm", "--compare", "naee"],
        "settings: naee reads what experts compute: it needs --engine transformers --replicas 1",
    ),
    (["--keep", "0"], "settings: keep: Input should be greater than or equal to 1"),
]


@pytest.mark.parametrize(("flags", "message"), COMPRESS, ids=[m for _, m in COMPRESS])
def test_compress_refuses_what_cannot_work_before_any_work(
    flags: list[str], message: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    result = run("compress", "--model", base, *flags, "--out", out, capsys=capsys)
    assert one_error(*result) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("offline.compress.compress", ("compress", "--keep", "4", "--task", "sciq")),
        ("offline.recover.recover", ("recover", "--task", "sciq")),
    ],
)
def test_an_output_that_another_has_just_made_is_refused_before_any_work(
    module: str,
    words: tuple[str, ...],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It was not there when the command began, and nobody works at it any more."""

    @contextmanager
    def late(out: Path) -> Iterator[None]:
        out.mkdir()
        yield

    monkeypatch.setattr(f"{module}.owned", late)
    out = tmp_path / "out"
    command = (words[0], "--model", base, *words[1:], "--out", out)
    assert one_error(*run(*command, capsys=capsys)) == f"{out} already exists"
    assert sorted(tmp_path.iterdir()) == [out]
