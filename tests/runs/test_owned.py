"""Which folders and files are ours, also those of versions that left no manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offline.build.build import build
from offline.build.export import EXPORTS, is_export
from offline.runs.inputs import input_within
from offline.runs.owned import MANIFEST, check_page, first_foreign, write_manifest
from tests.sample_maps import uniform_map
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError

UNIFORM = [(0, 1, 2, 3)] * 4


@pytest.fixture
def pruned(base: Path, tmp_path: Path) -> Path:
    build(Checkpoint.open(base), uniform_map(base, UNIFORM), tmp_path / "pruned")
    return tmp_path / "pruned"


# What other commands of ours put there when the folder is finished.
LATER = {
    "report.html": '<meta name="generator" content="vllm-moe-prune 0.1">',
    "check.json": '{"checks": [], "served_as": "plain"}',
    "serving.json": '{"lifetimes": [], "ratios": []}',
    "analysis.json": '{"provenance": {}}',
}


@pytest.mark.parametrize("name", [*LATER, "model.safetensors", "README.md", "config.json"])
def test_a_file_of_the_user_s_under_a_name_of_ours_is_foreign(name: str, pruned: Path) -> None:
    (pruned / name).write_text("mine")
    assert first_foreign(pruned) == name


def test_weights_that_were_trained_on_are_foreign(pruned: Path) -> None:
    """The same names, sizes and headers: only the numbers are other ones."""
    file = pruned / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    assert first_foreign(pruned) == "model.safetensors"


@pytest.mark.parametrize("files", ["null", "[{}]", '"all"', "7"])
def test_a_damaged_manifest_says_nothing(files: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"written_by": "vllm-moe-prune", "files": ' + files + "}")
    (tmp_path / "mine").write_text("mine")
    assert first_foreign(tmp_path) in ("mine", MANIFEST)


@pytest.mark.parametrize("manifest", [True, False])
def test_a_folder_of_ours_is_ours_and_the_first_other_file_is_named(
    manifest: bool, pruned: Path
) -> None:
    if not manifest:
        (pruned / MANIFEST).unlink()
    assert first_foreign(pruned) is None
    for name, content in LATER.items():
        (pruned / name).write_text(content)
    assert first_foreign(pruned) is None
    (pruned / "empty").mkdir()
    assert first_foreign(pruned) is None
    (pruned / "z.txt").write_text("mine")
    assert first_foreign(pruned) == "z.txt"
    (pruned / "link").symlink_to(pruned.parent)
    assert first_foreign(pruned) == "link"
    (pruned / "empty" / "mine").write_text("mine")
    assert first_foreign(pruned) == "empty/mine"


def test_a_base_is_not_ours_even_with_a_map_beside_it(base: Path, tmp_path: Path) -> None:
    assert first_foreign(base) == "LICENSE"
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (copy / name).write_bytes((base / name).read_bytes())
    weights = next(base.glob("*.safetensors"))
    (copy / weights.name).write_bytes(weights.read_bytes())
    assert first_foreign(copy) == "config.json"
    uniform_map(base, UNIFORM).save(copy)
    assert first_foreign(copy) == weights.name


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"provenance": {"tool": "another"}}'])
def test_a_file_of_a_name_that_we_also_use_is_not_ours(content: str, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(content)
    assert first_foreign(tmp_path) == "scores.json"
    (tmp_path / MANIFEST).write_text(content)
    assert first_foreign(tmp_path) == MANIFEST


def test_an_empty_folder_may_be_replaced(tmp_path: Path) -> None:
    assert first_foreign(tmp_path) is None


def test_a_manifest_names_every_file(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b").write_text("b")
    (tmp_path / "a").write_text("a")
    write_manifest(tmp_path)
    write_manifest(tmp_path)
    told = json.loads((tmp_path / MANIFEST).read_text())
    assert list(told["files"]) == ["a", "inner/b"] and told["written_by"] == "vllm-moe-prune"


def test_a_manifest_is_not_copied_into_what_is_built_from_its_folder(
    pruned: Path, tmp_path: Path
) -> None:
    found = json.loads((pruned / MANIFEST).read_text())["files"]
    written = {f.relative_to(pruned).as_posix() for f in pruned.rglob("*") if f.is_file()}
    assert written == {*found, MANIFEST}
    build(Checkpoint.open(pruned), uniform_map(pruned, [(0, 1)] * 4), tmp_path / "again")
    again = json.loads((tmp_path / "again" / MANIFEST).read_text())["files"]
    assert list(again) == list(found) and again != found


def test_exports_are_ours_and_other_files_are_not(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    for write in EXPORTS.values():
        file.write_text(write(uniform_map(base, UNIFORM)))
        assert is_export(file)
    for content in ("", "{}", '{"saliency": [[0.5]]}', '{"saliency": [[1.0]], "more": 1}', "[1]"):
        file.write_text(content)
        assert not is_export(file)


def test_a_page_is_drawn_over_pages_of_ours_alone(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    check_page(page)
    page.write_text('<meta name="generator" content="vllm-moe-prune 0.1">')
    check_page(page)
    page.write_text("<p>mine")
    with pytest.raises(PruneError, match="was not written by vmprune"):
        check_page(page)


@pytest.mark.parametrize(
    "word",
    ["{}", "text:{}", "code={}", "code={}:64", "a:2,code={}:64", "{}:2,sciq", "sciq,{}@5"],
)
def test_an_input_is_found_in_words(word: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    file = out / "text.txt"
    file.write_text("text")
    assert input_within(out, (None, 4, True, word.format(file))) == file
    assert input_within(out, (word.format(tmp_path / "absent.txt"),)) is None


def test_an_input_is_found_behind_links_and_dots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, outside = tmp_path / "out", tmp_path / "model"
    (out / "inner").mkdir(parents=True)
    outside.mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(out / "inner")
    assert input_within(out, (tmp_path / "link",)) == tmp_path / "link"
    assert input_within(Path("out"), (outside / ".." / "out",)) is not None
    assert input_within(out, (out / ".." / "model",)) is None
    assert input_within(out, (outside, tmp_path, "sciq", "out")) is None
    (outside / "weights").symlink_to(out / "inner" / "weights")
    assert input_within(out, (outside, "./" + "a" * 300)) is None
    (out / "inner" / "weights").write_text("weights")
    assert input_within(out, (outside,)) == outside
