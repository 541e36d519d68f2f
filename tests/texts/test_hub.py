"""Data sets of the hub: the real clients of datasets and huggingface_hub ask the tests' own hub."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from offline.calibration.corpus import Domain, load_domains, parse_calibration
from offline.recover.instructions import Instructions, parse_data
from offline.texts import hub_rows
from offline.texts.hub_rows import parse_name
from tests.hub.server import Hub
from tests.texts.samples import CHATS, TEXTS, WRITERS, write_rows
from vllm_moe_prune.errors import PruneError

SPLITS = ("train", "test")


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    hub_rows._found.cache_clear()


@pytest.fixture
def chats(hub: Hub, tmp_path: Path) -> str:
    """A data set of two configs in Parquet; returns its first commit."""
    folder = tmp_path / "chats"
    for config, rows in (("one", CHATS), ("two", [{"text": text} for text in TEXTS * 9])):
        for split in SPLITS:
            (folder / config / split).mkdir(parents=True)
            write_rows(folder / config / split, rows, ".parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(
            f"- config_name: {config}\n  data_files:\n"
            + "".join(
                f"  - {{split: {s}, path: {config}/{s}/*.parquet}}\n" for s in ("train", "test")
            )
            for config in ("one", "two")
        )
        + "---\n"
    )
    return hub.publish("Org/Chats", folder, kind="dataset", tag="v1")


def load(spec: str, tokenizer: Any, **options: Any) -> Domain:
    (domain,) = load_domains(parse_calibration(spec), tokenizer, **options)
    return domain


@pytest.mark.parametrize("kind", WRITERS)
def test_rows_of_the_hub_are_those_of_a_file(
    kind: str, hub: Hub, tmp_path: Path, tokenizer: Any
) -> None:
    (tmp_path / "set").mkdir()
    file = write_rows(tmp_path / "set", CHATS, kind)
    commit = hub.publish(f"Org/Set{kind[1:]}", tmp_path / "set", kind="dataset")
    here = load(f"rows={file}:6", tokenizer, length=24, seed=2)
    there = load(f"rows=hf:Org/Set{kind[1:]}:6", tokenizer, length=24, seed=2)
    assert (here.token_ids == there.token_ids).all()
    assert there.use is not None and here.use is not None
    assert there.use.revision == commit
    assert there.use.model_copy(update={"revision": None}) == here.use
    assert there.identity.split == f"train@{commit}"
    assert there.identity.sha256 == here.identity.sha256


def test_a_config_a_split_a_column_and_a_revision(
    chats: str, hub: Hub, tmp_path: Path, tokenizer: Any
) -> None:
    (tmp_path / "other").mkdir()
    rows = [{"a": "the cat", "b": "a dog", "messages": []}] * 30
    write_rows(tmp_path / "other", rows, ".parquet")
    newer = hub.publish("Org/Chats", tmp_path / "other", kind="dataset")
    for revision in ("v1", chats):
        domain = load(f"hf:Org/Chats@{revision}/two:test#text:2", tokenizer, length=8)
        assert domain.name == "Chats-two"
        assert domain.use is not None and domain.use.revision == chats
    cats = load("hf:Org/Chats#a:3", tokenizer, length=3)
    assert cats.use is not None and cats.use.revision == newer
    wanted = [*tokenizer.encode("the cat", add_special_tokens=False), tokenizer.eos_token_id]
    assert cats.name == "Chats" and cats.token_ids.tolist() == [wanted] * 3


def test_one_file_of_a_data_set(chats: str, tokenizer: Any) -> None:
    file = load("hf:Org/Chats/two/train/rows.parquet:3", tokenizer, length=8)
    assert file.name == "Chats-rows"
    assert file.token_ids.shape == (3, 8)


def test_examples_to_recover_with(chats: str, tokenizer: Any) -> None:
    (part,) = parse_data("hf:Org/Chats/one:train:5")
    given = Instructions(part, tokenizer)
    examples = list(given.read())
    assert len(examples) == 5 and given.tally.rows == 5
    assert all(answer.startswith(" the ") for _, _, answer in examples)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("hf:Org/Nothing", "there is no data set Org/Nothing on the hub"),
        ("hf:Org/Chats@v9/one", "the data set Org/Chats has no revision v9"),
        ("hf:Org/Chats", "the data set has several configs, name one: one, two"),
        ("hf:Org/Chats/three", "the data set has no such config; it has: one, two"),
        ("hf:Org/Chats/one:validation", "the data set has no split validation"),
        ("hf:Org/Chats/two#body", "has no column body: its columns are text"),
        ("hf:Org/Chats/two/train/no.parquet", "has no file two/train/no.parquet"),
        ("hf:Chats", "cannot read hf:Chats"),
        ("hf:Org/Chats/one:train[:5]", "cannot read hf:Org/Chats/one:train"),
    ],
)
def test_what_is_not_there_is_one_line(spec: str, said: str, chats: str) -> None:
    begin = time.monotonic()
    with pytest.raises(PruneError, match=said) as error:
        parse_calibration(spec)
    assert len(str(error.value).splitlines()) == 1
    assert time.monotonic() - begin < 20


def test_gated_and_down(hub: Hub, tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "set").mkdir()
    write_rows(tmp_path / "set", CHATS, ".parquet")
    hub.publish("Org/Gated", tmp_path / "set", kind="dataset", gated=True)
    with pytest.raises(PruneError, match=r"Org/Gated is gated") as error:
        load("hf:Org/Gated:2", tokenizer, length=8)
    assert error.value.hint is not None and "HF_TOKEN" in error.value.hint
    hub.is_down = True
    with pytest.raises(PruneError, match=r"hf:Org/Gated cannot be read: .*503") as error:
        parse_calibration("hf:Org/Gated")
    assert len(str(error.value).splitlines()) == 1


_CHILD = """
import sys, time
from offline.calibration.corpus import parse_calibration
from vllm_moe_prune.errors import PruneError
try:
    parse_calibration(sys.argv[1])
    said = "found"
except PruneError as error:
    said = str(error)
print("torch" in sys.modules, said)
"""


@pytest.mark.parametrize("offline", [False, True])
def test_a_source_is_looked_at_without_torch(
    offline: bool, chats: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if offline else "0")
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, "hf:Org/Chats/one:4"], capture_output=True, text=True
    )
    torch, _, said = done.stdout.strip().partition(" ")
    assert torch == "False", done.stderr
    assert said == "found" if not offline else "HF_HUB_OFFLINE is set" in said


def test_a_stream_that_breaks_off_is_one_line(
    hub: Hub, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    lines = [json.dumps({"text": "the cat"}), "{"]
    (tmp_path / "set" / "rows.jsonl").write_text("\n".join(lines))
    hub.publish("Org/Broken", tmp_path / "set", kind="dataset")
    with pytest.raises(PruneError, match=r"hf:Org/Broken.* cannot be read") as error:
        load("hf:Org/Broken:2", tokenizer, length=8)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("kind", WRITERS)
def test_a_column_that_is_not_there_is_said_when_the_set_is_named(
    kind: str, hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    write_rows(tmp_path / "set", [{"body": "the cat"}], kind)
    hub.publish(f"Org/Other{kind[1:]}", tmp_path / "set", kind="dataset")
    for column in ("", "#no"):
        with pytest.raises(PruneError, match="its columns are body"):
            parse_calibration(f"hf:Org/Other{kind[1:]}{column}:4")


def test_names() -> None:
    found = parse_name("Org/Name@abc/config:train")
    assert (found.repo, found.revision, found.config, found.split) == (
        *("Org/Name", "abc", "config", "train"),
    )
    assert parse_name("Org/Name").short == "Name"
    assert parse_name("Org/Name/a/b.jsonl.gz").short == "Name-b"
