"""The folder of a run: continued with the same settings, refused or begun anew with others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offline.runs.output import WORK_MARKER
from offline.runs.owned import stamp
from offline.runs.resume import RUN_MARKER, check_outputs, remove_run, run_folder
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
    (folder / "scores").mkdir()
    other = IDENTITY | {"recipe": {"keep": 3}}
    with pytest.raises(PruneError) as caught:
        run_folder(tmp_path / "out", other, force=False)
    assert caught.value.message == f"{folder} holds a run with other settings or another base"
    assert (folder / "evaluations.jsonl").read_text() == "old"
    run_folder(tmp_path / "out", other, force=True)
    assert sorted(file.name for file in folder.iterdir()) == [RUN_MARKER, "settings.json"]
    assert [file.name for file in tmp_path.iterdir()] == ["out.run"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "files",
    [
        {"notes.txt": "mine"},
        {"result.json": "{}"},
        {"step-100/w.bin": "mine"},
        {"round-1/w.bin": "mine"},
        {"settings.json": '{"theme": "dark"}'},
        {"settings.json": json.dumps({"recipe": 1}), "notes.txt": "mine"},
        {"scores/mine.txt": "mine"},
        {"result/mine.txt": "mine"},
    ],
)
def test_a_folder_of_the_users_is_never_a_run(
    files: dict[str, str], force: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "out.run"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    with pytest.raises(PruneError, match=r"out\.run"):
        run_folder(tmp_path / "out", IDENTITY, force=force)
    assert {name: (folder / name).read_text() for name in files} == files
    assert [file.name for file in tmp_path.iterdir()] == ["out.run"]


def test_what_a_killed_run_was_just_writing_is_gone_when_it_goes_on(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out", IDENTITY, force=False)
    (folder / "on-result").mkdir()
    mine = [folder / "notes.tmp", folder / ".notes.1234.tmp"]
    half = [folder / f".cells.json.{'0f' * 8}.tmp", folder / f"on-result/.log.{'1' * 16}.tmp"]
    for file in (*mine, *half):
        file.write_text("{")
    run_folder(tmp_path / "out", IDENTITY, force=False)
    assert sorted(folder.rglob("*.tmp")) == sorted(mine)


@pytest.mark.parametrize("marked", [True, False])
def test_what_was_left_beside_a_finished_part_is_gone_when_the_run_goes_on(
    marked: bool, tmp_path: Path
) -> None:
    """Nothing makes that part again, so nothing else would look for it."""
    part = run_folder(tmp_path / "out", IDENTITY, force=False) / "round-02" / "pruned"
    part.mkdir(parents=True)
    (left := part.with_name(".pruned.xyt5l8vy.partial")).mkdir()
    if marked:
        (left / WORK_MARKER).write_text(stamp(work_for="pruned"))
    run_folder(tmp_path / "out", IDENTITY, force=False)
    assert list(part.parent.iterdir()) == [part]


@pytest.mark.parametrize("force", [False, True])
def test_a_run_with_a_users_file_in_it_continues_and_is_not_begun_anew(
    force: bool, tmp_path: Path
) -> None:
    folder = run_folder(tmp_path / "out", IDENTITY, force=False)
    (folder / "notes.txt").write_text("mine")
    assert run_folder(tmp_path / "out", IDENTITY, force=force) == folder
    with pytest.raises(PruneError):
        run_folder(tmp_path / "out", IDENTITY | {"base": 1}, force=force)
    remove_run(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    remove_run(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_an_earlier_version_continues_and_is_marked(tmp_path: Path) -> None:
    folder = tmp_path / "out.run"
    folder.mkdir()
    settings = json.dumps(IDENTITY, indent=2, sort_keys=True) + "\n"
    (folder / "settings.json").write_text(settings)
    (folder / "evaluations.jsonl").write_text("kept")
    run_folder(tmp_path / "out", IDENTITY, force=False)
    assert (folder / "evaluations.jsonl").read_text() == "kept"
    assert (folder / RUN_MARKER).is_file()


@pytest.mark.parametrize("other", ["file", "link", "dangling"])
def test_what_is_no_folder_is_no_run(other: str, tmp_path: Path) -> None:
    folder = tmp_path / "out.run"
    (tmp_path / "there").mkdir()
    if other == "file":
        folder.write_text("mine")
    else:
        folder.symlink_to(tmp_path / ("there" if other == "link" else "absent"))
    with pytest.raises(PruneError):
        run_folder(tmp_path / "out", IDENTITY, force=True)
    assert folder.is_symlink() or folder.read_text() == "mine"
    assert list((tmp_path / "there").iterdir()) == []


def test_a_run_begun_anew_and_killed_has_no_old_log_beside_new_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(tmp_path / "out", IDENTITY, force=False)
    (folder / "evaluations.jsonl").write_text("old")
    before = (folder / "settings.json").read_text()

    def fails(self: Path, target: Path) -> Path:
        if target == folder and self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    rename = Path.rename
    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(KeyboardInterrupt):
        run_folder(tmp_path / "out", IDENTITY | {"base": 1}, force=True)
    assert (folder / "settings.json").read_text() == before
    assert (folder / "evaluations.jsonl").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["out.run"]


def test_an_input_in_the_runs_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out", IDENTITY, force=False)
    (folder / "scores").mkdir()
    with pytest.raises(PruneError, match="scores lies in"):
        check_outputs(tmp_path / "out", force=True, inputs=(folder / "scores",))
    check_outputs(tmp_path / "out", force=True, inputs=(tmp_path,))
    with pytest.raises(PruneError, match="is too long"):
        check_outputs(tmp_path / ("a" * 252), force=True)


@pytest.mark.parametrize(
    "name",
    ["round-01/notes.txt", "round-01/map/notes.txt", "step-7/notes.txt", "on-result/notes.txt"],
)
def test_a_file_of_the_user_s_deep_in_a_run_is_named_and_stays(name: str, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out", IDENTITY, force=False)
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("mine")
    other = IDENTITY | {"recipe": {"keep": 3}}
    with pytest.raises(PruneError) as caught:
        run_folder(tmp_path / "out", other, force=True)
    assert name in caught.value.message
    assert (folder / name).read_text() == "mine"


def test_what_rounds_and_states_keep_is_a_run_s(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out", IDENTITY, force=False)
    for name in (
        *("round-01/pruned.json", "round-01/seconds.json", "round-01/map.deleted/config.json"),
        *("round-01/tuned.finetune.run/step-00000005/optimizer.bin",),
        *("model-tuned.finetune.run/step-00000005/random_states_0.pkl", "step-7.partial/x"),
        *("on-result/evaluations.jsonl", "evaluations.jsonl", "base.json"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("ours")
    run_folder(tmp_path / "out", IDENTITY | {"recipe": {"keep": 3}}, force=True)
    assert sorted(file.name for file in folder.iterdir()) == [RUN_MARKER, "settings.json"]


_PRINT = {"config": "c", "index": "i", "routers": "r"}


def test_a_run_of_other_weights_is_another_run_and_one_without_a_digest_goes_on(
    tmp_path: Path,
) -> None:
    """Earlier versions wrote none; of a model that is not downloaded yet there is none."""
    out = tmp_path / "out"
    weights = {"base": {**_PRINT, "weights": "w", "whole": None}}
    folder = run_folder(out, {"recipe": 1, "base": _PRINT}, force=False)
    run_folder(out, {"recipe": 1, **weights}, force=False)
    assert json.loads((folder / "settings.json").read_text())["base"]["weights"] == "w"
    run_folder(out, {"recipe": 1, "base": {**_PRINT, "weights": None}}, force=False)
    assert json.loads((folder / "settings.json").read_text())["base"]["weights"] == "w"
    with pytest.raises(PruneError, match="another base"):
        run_folder(out, {"recipe": 1, "base": {**_PRINT, "weights": "v"}}, force=False)
