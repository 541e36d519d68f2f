"""The folder of a run: continued with the same settings, refused or begun anew with others."""

from __future__ import annotations

from pathlib import Path

import pytest

from offline.run_folder import run_folder
from vllm_moe_prune.errors import PruneError

IDENTITY = {"recipe": {"keep": 4}, "base": {"config": "c"}}


def test_a_run_continues_with_the_same_settings(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out", IDENTITY, force=False)
    assert folder == tmp_path / "out.run"
    (folder / "evaluations.jsonl").write_text("kept")
    for force in (False, True):
        assert run_folder(tmp_path / "out", dict(reversed(IDENTITY.items())), force=force) == folder
        assert (folder / "evaluations.jsonl").read_text() == "kept"


def test_a_run_with_other_settings_is_refused_and_with_force_begun_anew(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out", IDENTITY, force=False)
    (folder / "evaluations.jsonl").write_text("old")
    (folder / "cache").mkdir()
    other = IDENTITY | {"recipe": {"keep": 3}}
    with pytest.raises(PruneError) as caught:
        run_folder(tmp_path / "out", other, force=False)
    assert caught.value.message == f"{folder} holds a run with other settings or another base"
    assert (folder / "evaluations.jsonl").read_text() == "old"
    run_folder(tmp_path / "out", other, force=True)
    assert [file.name for file in folder.iterdir()] == ["settings.json"]
