"""Models by the names they have on the hub, as a user meets them: the real client, a local hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from offline.calibration.scores import Scores
from tests.command import invoke, one_error, run
from tests.hub.server import Hub
from tests.hub.sparse import make_sparse
from tests.sample_files import write_text
from tests.sample_maps import map_of, uniform_map
from vllm_moe_prune.routing_map import RoutingMap

CARD = "---\nlicense: apache-2.0\nlanguage: [en]\ntags: [moe, '2026']\n---\n# The base\n"
UNIFORM = [(0, 2, 5, 7)] * 4


@pytest.fixture
def published(hub: Hub, base: Path, tmp_path: Path) -> Path:
    """What is on the hub as Org/Tiny, with files that nobody needs."""
    folder = tmp_path / "published-tiny"
    shutil.copytree(base, folder)
    (folder / "README.md").write_text(CARD)
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"weights once more")
    (folder / "consolidated.safetensors").write_bytes(b"and once more")
    (folder / "tiny.gguf").write_bytes(b"and once more")
    hub.publish("Org/Tiny", folder, tag="v1")
    return folder


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    return write_text(tmp_path / "prose.txt")


@pytest.fixture
def routing_map(published: Path, tmp_path: Path) -> Path:
    uniform_map(published, UNIFORM).save(tmp_path / "map")
    return tmp_path / "map"


def succeed(*arguments: str | Path) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def cached(tmp_path: Path) -> set[str]:
    """The names of what was downloaded."""
    return {f.name for f in (tmp_path / "huggingface").glob("hub/*/snapshots/*/**/*")}


def test_inspect_and_dry_run_read_headers_of_500_mb_over_the_network(
    hub: Hub, base: Path, tmp_path: Path
) -> None:
    folder = make_sparse(base, tmp_path / "sparse", intermediate=20_000)
    commit = hub.publish("Org/Large", folder)
    facts = json.loads(succeed("inspect", "Org/Large", "--json"))
    assert hub.sent < 1_000_000
    assert facts["num_bytes"] > 480e6
    local = json.loads(succeed("inspect", folder, "--json"))
    assert local["fingerprint"].pop("name") == "sparse"
    assert facts["fingerprint"].pop("name") == "Org/Large"
    assert facts["fingerprint"].pop("weights") is None  # they are not here
    assert local["fingerprint"].pop("weights").startswith("sha256:")
    assert facts | {"path": ""} == local | {"path": ""}
    routing_map = map_of(folder, uniform_map(base, UNIFORM).layers)
    routing_map.save(tmp_path / "map")
    words = ["--map", tmp_path / "map", "--out", tmp_path / "out", "--dry-run"]
    said = succeed("build", "--model", f"Org/Large@{commit}", *words)
    assert said == succeed("build", "--model", folder, *words)
    assert hub.sent < 1_000_000
    assert not {name for name in cached(tmp_path) if name.endswith(".safetensors")}
    assert not (tmp_path / "out").exists()


def test_a_build_by_id_is_that_of_the_folder_and_its_card_names_the_model(
    hub: Hub, published: Path, routing_map: Path, tmp_path: Path
) -> None:
    commit = next(iter(hub.repositories["model", "Org/Tiny"].trees))
    succeed("build", "--model", "Org/Tiny@v1", "--map", routing_map, "--out", tmp_path / "by-id")
    succeed("build", "--model", published, "--map", routing_map, "--out", tmp_path / "by-folder")
    made, other = ({f.name for f in (tmp_path / n).iterdir()} for n in ("by-id", "by-folder"))
    assert made == other
    for file in made - {"README.md", "routing_map.json", ".vmprune.json"}:
        one = (tmp_path / "by-id" / file).read_bytes()
        assert one == (tmp_path / "by-folder" / file).read_bytes(), file
    told = RoutingMap.load(tmp_path / "by-id").provenance.settings
    assert (told["base_model"], told["base_commit"]) == ("Org/Tiny", commit)
    card = (tmp_path / "by-id" / "README.md").read_text()
    assert card.startswith(
        '---\nbase_model: Org/Tiny\nlicense: "apache-2.0"\nlanguage: ["en"]\n'
        'tags: [mixture-of-experts, expert-pruning, vllm-moe-prune, moe, "2026"]\n---\n'
    )
    unneeded = "original|consolidated|[.]bin$|gguf$|[.]pt$|pkl$"
    assert list(hub.asked(f"resolve/.*({unneeded})")) == []


def test_folders_that_readers_use_come_from_the_hub_with_their_weights_when_it_is_built(
    hub: Hub, base: Path, routing_map: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sounds"
    shutil.copytree(base, folder)
    read = {
        "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
        "audio_tokenizer/config.json": b"{}",
        "audio_tokenizer/model.safetensors": b"an encoder's own weights",
    }
    for name, content in {**read, "figures/config.json": b"{}"}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    hub.publish("Org/Sounds", folder)
    words = ["--model", "Org/Sounds", "--map", routing_map, "--out", tmp_path / "out"]
    succeed("build", *words, "--allow-other-base", "--dry-run")
    assert list(hub.asked("resolve/.*audio_tokenizer/config.json"))
    assert not list(hub.asked("resolve/.*audio_tokenizer/model.safetensors"))
    succeed("build", *words, "--allow-other-base")
    for name, content in read.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    assert not list(hub.asked("resolve/.*figures"))


def test_a_snapshot_of_the_cache_is_called_by_its_id(
    hub: Hub, published: Path, routing_map: Path, tmp_path: Path
) -> None:
    from huggingface_hub import snapshot_download

    snapshot = snapshot_download("Org/Tiny")
    before = len(hub.requests)
    succeed("build", "--model", snapshot, "--map", routing_map, "--out", tmp_path / "out")
    assert len(hub.requests) == before
    assert "\nbase_model: Org/Tiny\n" in (tmp_path / "out" / "README.md").read_text()


def test_scores_by_id_are_those_of_the_folder(
    hub: Hub, published: Path, text_file: Path, tmp_path: Path
) -> None:
    for out, model in (("by-id", "Org/Tiny"), ("by-folder", published)):
        succeed(
            *("score", "--model", model, "--calibration", f"{text_file}:2", "--length", "16"),
            *("--dtype", "float32", "--device", "cpu", "--out", tmp_path / out),
        )
    one, other = Scores.load(tmp_path / "by-id"), Scores.load(tmp_path / "by-folder")
    weights = [
        (tmp_path / out / "scores.safetensors").read_bytes() for out in ("by-id", "by-folder")
    ]
    assert weights[0] == weights[1]
    assert one.shape.base.matches(other.shape.base) and one.shape.base.name == "Org/Tiny"
    plan = ("plan", "--scores", tmp_path / "by-id", "--keep", "4", "--out", tmp_path / "plan")
    succeed(*plan)
    for made in (one.provenance, RoutingMap.load(tmp_path / "plan").provenance):
        assert made.settings["base_model"] == "Org/Tiny"
        assert str(made.settings["base_commit"]) in hub.repositories["model", "Org/Tiny"].trees


def test_compress_by_the_id_in_a_recipe_resumes_a_broken_download(
    hub: Hub, published: Path, task_file: Path, tmp_path: Path
) -> None:
    shard = sorted(published.glob("model-*.safetensors"))[0]
    hub.break_off(shard.name, after=500_000)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"base: {{model: Org/Tiny}}\nmethod: {{name: frequency, keep: 4}}\n"
        f"data: {{task: {task_file}, search_items: 8}}\n"
        "measure: {test_items: 8, compare: none}\nengine: {device: cpu, dtype: float32}\n"
    )
    out = tmp_path / "out"
    result = json.loads(succeed("compress", "--recipe", recipe, "--out", out, "--json"))
    assert result["model"] == "Org/Tiny"
    assert result["provenance"]["settings"]["base_model"] == "Org/Tiny"
    assert "base_model: Org/Tiny\n" in (out / "README.md").read_text()
    asked = [r for r in hub.asked(f"/cdn/.*{shard.name}") if r.sent and r.range is None]
    assert [r.sent for r in asked] == [500_000, shard.stat().st_size]


def test_eval_by_id_says_what_it_says_of_the_folder(
    hub: Hub, published: Path, task_file: Path
) -> None:
    words = ("--task", task_file, "--limit", "8", "--device", "cpu", "--dtype", "float32", "--json")
    by_id, by_folder = (
        json.loads(succeed("eval", "--model", model, *words)) for model in ("Org/Tiny", published)
    )
    assert by_id["items"] == by_folder["items"]


def test_a_second_start_downloads_only_what_the_first_did_not(
    hub: Hub,
    published: Path,
    routing_map: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import file_download

    shards = sorted(file.name for file in published.glob("model-*.safetensors"))
    get = file_download.http_get

    def stopping(url: str, *arguments: Any, **options: Any) -> None:
        if url.endswith(shards[-1]):
            raise OSError("the connection is gone")
        get(url, *arguments, **options)

    build = ("build", "--model", "Org/Tiny", "--map", routing_map, "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", stopping)
        status, stderr = run(*build, capsys=capsys)
    assert status == 1
    assert "error: the download of Org/Tiny stopped: the connection is gone" in stderr
    succeed(*build)
    whole = [r.path.rpartition("/")[2] for r in hub.asked("/cdn/") if r.range is None and r.sent]
    assert sorted(whole) == shards


def test_each_reason_has_its_line(
    hub: Hub,
    published: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants

    hub.publish("Org/Gated", published, gated=True)
    refused = {
        "Org/Gated": "Org/Gated is gated on the hub, and this token may not read it",
        "Org/Tiny@v9": "the hub's Org/Tiny has no revision 'v9'",
    }
    for name, line in refused.items():
        assert one_error(*run("inspect", name, capsys=capsys)) == line
    monkeypatch.setenv("HF_TOKEN", hub.member)
    assert run("inspect", "Org/Gated", capsys=capsys)[0] == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = one_error(*run("inspect", "Org/Tiny", capsys=capsys))
    assert error.startswith("HF_HUB_OFFLINE is set, and Org/Tiny is neither a folder here nor in")


def test_offline_a_model_of_the_cache_is_whole_or_says_what_is_missing(
    hub: Hub,
    published: Path,
    routing_map: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants

    build = ("build", "--model", "Org/Tiny", "--map", routing_map, "--out", tmp_path / "out")
    succeed(*build[:-2], "--out", tmp_path / "first", "--dry-run")  # all but the weights
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = one_error(*run(*build, capsys=capsys))
    assert error.startswith("HF_HUB_OFFLINE is set, and Org/Tiny has no model-00001-of-")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    succeed(*build)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    succeed(*build, "--force")
    assert len(hub.requests) == before


def test_a_folder_of_the_same_name_wins_and_says_so(
    hub: Hub, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Org").mkdir()
    (tmp_path / "Org" / "Tiny").symlink_to(published)
    result = invoke("inspect", "Org/Tiny")
    note = "note: Org/Tiny is the folder of that name; the hub's model is Org/Tiny@main\n"
    assert (result.exit_code, result.stderr) == (0, note)
    assert list(hub.requests) == []
    assert "note" not in invoke("inspect", "Org/Tiny@main").stderr
    assert list(hub.asked("/api/models/Org/Tiny/revision/main"))
