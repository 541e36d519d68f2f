"""Models by their names: the real client of the hub, and a hub on this machine."""

from __future__ import annotations

import errno
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.hub.server import Hub
from vllm_moe_prune import hub as our
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import HubReference, commit, fetch, parse

WEIGHTS = bytes(range(256)) * 12_000  # 3 MB
NAME = HubReference("Org/Name")
WANTED = ["*.json", "*.safetensors"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "pytorch_model.bin").write_bytes(WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("Org/Name", HubReference("Org/Name")),
        ("Qwen/Qwen3-30B-A3B@main", HubReference("Qwen/Qwen3-30B-A3B", "main")),
        ("o_1/n.2@refs/pr/3", HubReference("o_1/n.2", "refs/pr/3")),
        ("gpt2", None),
        ("./Org/Name", None),
        ("../Name", None),
        ("/Org/Name", None),
        ("~/Name", None),
        ("Org/Name/", None),
        ("a/b/c", None),
        ("Org/Name@", None),
        ("Org/a--b", None),
        ("Org/name.git", None),
        ("", None),
        ("Org/" + 5000 * "n", None),
    ],
)
def test_what_a_text_means(text: str, meant: HubReference | None) -> None:
    assert parse(text) == meant
    assert meant is None or str(meant) == text


def test_what_exists_here_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Org" / "Name").mkdir(parents=True)
    assert parse("Org/Name") is None
    assert parse("Org/Name@main") == HubReference("Org/Name", "main")


def test_only_what_is_wanted_is_downloaded_and_only_once(hub: Hub, folder: Path) -> None:
    published = hub.publish("Org/Name", folder)
    snapshot = fetch(NAME, WANTED)
    assert {f.name for f in snapshot.iterdir()} == {"config.json", "model.safetensors"}
    assert snapshot.name == commit(NAME) == published
    before = hub.sent
    assert fetch(NAME, WANTED) == snapshot
    assert hub.sent - before < 5_000


def test_revisions_are_branches_tags_and_commits(hub: Hub, folder: Path) -> None:
    first = hub.publish("Org/Name", folder, tag="v1")
    (folder / "config.json").write_text('{"second": true}')
    second = hub.publish("Org/Name", folder)
    found = {r: commit(HubReference("Org/Name", r)) for r in ("v1", first, "main", second)}
    assert found == {"v1": first, first: first, "main": second, second: second}
    assert (fetch(HubReference("Org/Name", "v1"), WANTED) / "config.json").read_text() == "{}"


def test_a_broken_download_goes_on_where_it_stopped(hub: Hub, folder: Path) -> None:
    from huggingface_hub import constants

    weights = WEIGHTS * 10
    (folder / "model.safetensors").write_bytes(weights)
    hub.publish("Org/Name", folder)
    hub.break_off("model.safetensors", after=25_000_000)
    snapshot = fetch(NAME, WANTED)
    assert (snapshot / "model.safetensors").read_bytes() == weights
    first, second = (r for r in hub.asked("/cdn/.*model.safetensors") if r.method == "GET")
    kept = 2 * constants.DOWNLOAD_CHUNK_SIZE
    assert (first.range, first.sent) == (None, 25_000_000)
    assert (second.range, second.sent) == (f"bytes={kept}-", len(weights) - kept)


def test_offline_takes_what_the_cache_has(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    published = hub.publish("Org/Name", folder)
    fetch(NAME, WANTED)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    assert fetch(NAME, WANTED).name == commit(NAME) == published
    assert len(hub.requests) == before
    assert_refused(HubReference("Org/Other"), "HF_HUB_OFFLINE is set, and Org/Other is neither")
    assert_refused(HubReference("Org/Name", "v2"), "and Org/Name@v2 is neither")


def test_offline_half_a_snapshot_is_not_enough(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.publish("Org/Name", folder)
    fetch(NAME, ["config.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_refused(NAME, "HF_HUB_OFFLINE is set, and Org/Name has no model.safetensors in the")


def test_a_hub_that_is_down_is_named(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.publish("Org/Name", folder)
    snapshot = fetch(NAME, WANTED)
    hub.is_down = True
    assert fetch(NAME, WANTED) == snapshot
    assert_refused(HubReference("Org/Other"), "answers 503, and Org/Other is neither")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    assert_refused(HubReference("Org/Other"), f"{nobody} cannot be reached")


def test_absent_wrong_and_closed_models_are_told_apart(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("Org/Name", folder)
    hub.publish("Org/Gated", folder, gated=True)
    hub.publish("Org/Private", folder, private=True)
    absent = "there is no folder Org/Absent here and no model of that name on"
    assert_refused(HubReference("Org/Absent"), absent)
    assert_refused(HubReference("Org/Private"), "there is no folder Org/Private here and no model")
    assert_refused(HubReference("Org/Name", "v9"), "the hub's Org/Name has no revision 'v9'")
    assert_refused(HubReference("Org/Gated"), "Org/Gated is gated on the hub", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", hub.stranger)
    assert_refused(HubReference("Org/Gated"), "Org/Gated is gated on the hub", "/Org/Gated")
    assert_refused(HubReference("Org/Absent"), absent)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert_refused(NAME, "Invalid credentials", "hf auth login")
    monkeypatch.setenv("HF_TOKEN", hub.member)
    assert fetch(HubReference("Org/Gated"), WANTED).is_dir()
    assert fetch(HubReference("Org/Private"), WANTED).is_dir()


def test_a_repository_without_such_files_is_refused(hub: Hub, folder: Path) -> None:
    hub.publish("Org/Name", folder)
    with pytest.raises(PruneError, match=r"has no file that is called \*\.gguf"):
        fetch(NAME, ["*.gguf"])


def test_a_disk_that_is_too_small_is_said_before_anything_is_downloaded(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("Org/Name", folder)
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(our.shutil, "disk_usage", lambda _: usage)
    assert_refused(NAME, "0.00307 GB for Org/Name, 0.001 GB are free", "HF_HOME")
    assert not list(hub.asked("resolve"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "not enough space in"),
        # as hf_xet says it, which downloads what the hub keeps in Xet
        (RuntimeError("IO Error: No space left on device (os error 28)"), "not enough space in"),
        (RuntimeError("CAS service error: error sending request"), "the download of Org/Name sto"),
    ],
)
def test_a_download_that_fails_meanwhile_is_one_line(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    from huggingface_hub import file_download

    def fail(*arguments: Any, **options: Any) -> NoReturn:
        raise error

    hub.publish("Org/Name", folder)
    monkeypatch.setattr(file_download, "http_get", fail)
    assert_refused(NAME, message)


def test_without_the_hubs_client_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert_refused(NAME, "need huggingface_hub, which is not installed", "pip install")


def assert_refused(reference: HubReference, message: str, hint: str = "") -> None:
    with pytest.raises(PruneError) as error:
        fetch(reference, WANTED)
    assert message in error.value.message
    assert "\n" not in str(error.value)
    assert hint in (error.value.hint or "")
