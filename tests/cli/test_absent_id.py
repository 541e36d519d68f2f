"""A model that nobody has, asked for by every command that takes models by id."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import one_error, run
from tests.hub.server import Hub
from tests.sample_maps import uniform_map

UNIFORM = [(0, 2, 5, 7)] * 4
VERBS: dict[str, list[str]] = {
    "inspect": ["inspect", "{}", "--json"],
    "score": ["score", "--model", "{}", "--out", "out"],
    "compress": ["compress", "--model", "{}", "--keep", "4", "--out", "out"],
    "build": ["build", "--model", "{}", "--map", "map", "--out", "out"],
    "check": ["check", "map", "--base", "{}"],
    "eval": ["eval", "--model", "{}", "--task", "sciq"],
    "recover": ["recover", "--model", "{}", "--task", "sciq", "--out", "out"],
    "recover its base": [
        *("recover", "--model", "base", "--base", "{}", "--task", "sciq", "--out", "out"),
    ],
    "import-eep": ["import-eep", "map.pth", "--model", "{}", "--out", "out"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_that_nobody_has_is_one_line_before_anything_is_loaded(
    verb: str,
    hub: Hub,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    uniform_map(base, UNIFORM).save(tmp_path / "map")
    (tmp_path / "base").symlink_to(base)
    words = [word.format("Org/Absent") for word in VERBS[verb]]
    before = sorted(tmp_path.rglob("*"))
    error = one_error(*run(*words, capsys=capsys))
    assert error == f"there is no folder Org/Absent here and no model of that name on {hub.address}"
    assert sorted(tmp_path.rglob("*")) == before


def test_absence_is_said_without_torch(hub: Hub, base: Path, tmp_path: Path) -> None:
    uniform_map(base, UNIFORM).save(tmp_path / "map")
    (tmp_path / "base").symlink_to(base)
    words = [[word.format("Org/Absent") for word in verb] for verb in VERBS.values()]
    script = f"""
import sys
from offline.cli.main import main
for words in {words!r}:
    sys.argv = ["vmprune", *words]
    try:
        main()
    except SystemExit:
        print([name for name in ("torch", "transformers", "vllm") if name in sys.modules], words)
"""
    arguments = [sys.executable, "-c", script]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.count("error: there is no folder Org/Absent here") == len(VERBS)
    assert done.stdout == "".join(f"[] {one}\n" for one in words)
