"""The whole folder: what readers use comes along, what describes the unpruned weights does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offline.build.build import build
from offline.build.companions import is_copied, left_behind
from tests.command import invoke
from tests.sample_maps import uniform_map
from tests.vllm_moe_prune.bare import write_bare
from vllm_moe_prune.checkpoint import Checkpoint

# As they lie in repositories of released models.
READ = (
    "additional_chat_templates/tool_use.jinja",
    "audio_tokenizer/config.json",
    "audio_tokenizer/model.safetensors",
    "audio_tokenizer/codec/weights.bin",
    "image_processor/preprocessor_config.json",
    "encoding/encoding_dsv32.py",
    "chat_template.jinja",
    "tokenizer.model",
    "preprocessor_config.json",
    "generation_config.json",
    "modeling_new.py",
    "LICENSE",
    "LICENSE.pdf",
    "NOTICE.txt",
    "GEMMA_TERMS.html",
)
UNPRUNED = (
    "original/consolidated.00.pth",
    "original/params.json",
    "figures/benchmark.png",
    "onnx/model.onnx",
    "metal/model.bin",
    ".cache/huggingface/x.lock",
    "consolidated.safetensors",
    "consolidated.safetensors.index.json",
    "model.safetensors.index.fp8.json",
    "pytorch_model.bin.index.json",
    "pytorch_model-00001-of-00002.bin",
    "model-Q4_K_M.gguf",
    "params.json",
    "adapter_config.json",
    "README_ZH.md",
    "eval_results.json",
    "trainer_state.json",
    "recipe.yaml",
    "benchmark.PNG",
    "SHA256SUMS",
)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    write_bare(folder)
    for name in (*READ, *UNPRUNED):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(f"of {name}")
    return folder


def files(folder: Path) -> set[str]:
    return {one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()}


def test_what_readers_use_comes_along_and_nothing_of_the_unpruned_weights(
    whole: Path, tmp_path: Path
) -> None:
    build(Checkpoint.open(whole), uniform_map(whole, [(3, 0), (1, 2)], top_k=1), tmp_path / "out")
    found = files(tmp_path / "out")
    written = {"config.json", "model.safetensors", "model.safetensors.index.json", "README.md"}
    assert found == {*READ, *written, "routing_map.json", ".vmprune.json"}
    for name in READ:
        assert (tmp_path / "out" / name).read_text() == f"of {name}"


def test_a_link_as_in_the_hubs_cache_is_copied_as_what_it_leads_to(
    whole: Path, tmp_path: Path
) -> None:
    blob = tmp_path / "blob"
    (whole / READ[0]).rename(blob)
    (whole / READ[0]).symlink_to(blob)
    build(Checkpoint.open(whole), uniform_map(whole, [(3, 0), (1, 2)], top_k=1), tmp_path / "out")
    out = tmp_path / "out" / READ[0]
    assert not out.is_symlink() and out.read_text() == f"of {READ[0]}"


def test_what_stays_behind_is_said_before_anything_is_written(whole: Path, tmp_path: Path) -> None:
    behind = left_behind(whole)
    assert {"original/", "figures/", "onnx/", "metal/", "params.json", "benchmark.PNG"} <= {*behind}
    assert not {name for name in behind if name.endswith((".safetensors", ".md", ".bin"))}
    uniform_map(whole, [(3, 0), (1, 2)], top_k=1).save(tmp_path / "map")
    words = ["build", "--model", whole, "--map", tmp_path / "map", "--out", tmp_path / "out"]
    text = invoke(*words, "--dry-run").output
    assert f"left behind, as of the unpruned model: {', '.join(behind)}" in text
    facts = json.loads(invoke(*words, "--dry-run", "--json").stdout)
    assert (facts["left_behind"], facts["lint"], facts["written"]) == (behind, [], False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "copied"),
    [
        ("tokenizer.json", True),
        ("merges.txt", True),
        ("hf_quant_config.json", True),  # and written with new numbers afterwards
        ("configuration.json", True),
        ("evaluation.json", False),
        ("Readme.md", False),
        ("routing_map.json", False),
        ("model.safetensors.index.json", False),
    ],
)
def test_single_names(name: str, copied: bool) -> None:
    assert is_copied(name) == copied
