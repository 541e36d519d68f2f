"""The hub of the tests, asked by the real clients."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.server import Hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a repository has: small files, a folder, a large file of 3 MB, a card."""
    folder = tmp_path / "repository"
    (folder / "original").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    (folder / "original" / "params.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 12_000)
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [moe]\n---\n# A model\n")
    return folder


def test_a_snapshot_is_what_was_published(hub: Hub, folder: Path) -> None:
    from huggingface_hub import HfApi, snapshot_download

    commit = hub.publish("Org/Name", folder, tag="v1")
    snapshot = Path(snapshot_download("Org/Name", revision="v1"))
    assert snapshot.name == commit
    for file in ("config.json", "original/params.json", "model.safetensors", "README.md"):
        assert (snapshot / file).read_bytes() == (folder / file).read_bytes()
    info = HfApi().model_info("Org/Name")
    assert (info.sha, info.card_data.license) == (commit, "mit")
    assert {"moe", "license:mit"} <= set(info.tags)
    assert [ref.name for ref in HfApi().list_repo_refs("Org/Name").tags] == ["v1"]
    assert [r.path for r in hub.asked("/cdn/") if r.method == "GET"] != []


def test_pages_of_a_long_list_are_followed(hub: Hub, folder: Path) -> None:
    from huggingface_hub import HfApi

    for number in range(7):
        (folder / "original" / f"{number}.txt").write_text(str(number))
    hub.publish("Org/Name", folder)
    hub.page = 3
    try:
        found = {entry.path for entry in HfApi().list_repo_tree("Org/Name", recursive=True)}
    finally:
        hub.page = 1000
    assert found == {p.relative_to(folder).as_posix() for p in folder.rglob("*")}
    paths = HfApi().get_paths_info("Org/Name", ["original", "config.json", "nothing"])
    assert [entry.path for entry in paths] == ["original", "config.json"]


def test_a_dataset_is_read_in_a_child_and_streamed(hub: Hub, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "rows"
    (folder / "data").mkdir(parents=True)
    for split, rows in (("train", 50), ("test", 5)):
        table = pa.table({"text": [f"{split} {n}" for n in range(rows)]})
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    hub.publish("Org/Rows", folder, kind="dataset")
    script = (
        "import datasets\n"
        "whole = datasets.load_dataset('Org/Rows', split='train')\n"
        "rows = datasets.load_dataset('Org/Rows', split='test', streaming=True)\n"
        "print(len(whole), whole[49]['text'], [r['text'] for r in rows][-1])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "50 train 49 test 4\n", done.stderr
