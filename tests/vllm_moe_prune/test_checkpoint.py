"""An opened checkpoint is whole; one that is not is refused in one line."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.vllm_moe_prune.bare import MIXTRAL, write_bare
from vllm_moe_prune.checkpoint import INDEX_FILE, Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.operations import Copy
from vllm_moe_prune.writer import write_shards

FIRST = "model-00001-of-00003.safetensors"


def refused(folder: Path) -> PruneError:
    with pytest.raises(PruneError) as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_found_where_it_lies(shards: int, tmp_path: Path) -> None:
    tensors = write_bare(tmp_path, shards=shards)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert checkpoint.raw(name) == tensor.tobytes()
        assert np.array_equal(checkpoint.tensor(name).numpy(), tensor)
    assert checkpoint.num_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert checkpoint.expert_bytes() == 2 * 4 * 3 * 24 * 4
    assert checkpoint.expert_counts() == {0: 4, 1: 4}


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_bare(tmp_path, shards=3)
    (tmp_path / FIRST).unlink()
    error = refused(tmp_path)
    assert error.message == f"shard {tmp_path / FIRST} is missing"
    assert error.hint == "download the checkpoint again"


def _cut_data(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _cut_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:20])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def _huge_header(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 2**62) + b"{}")


def _not_safetensors(file: Path) -> None:
    file.write_text("version https://git-lfs.example/spec/v1\noid sha256:0\nsize 12345\n")


@pytest.mark.parametrize(
    "damage", [_cut_data, _cut_header, _empty, _lengthen, _huge_header, _not_safetensors]
)
def test_a_truncated_or_damaged_shard_is_named(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    write_bare(tmp_path, shards=3)
    damage(tmp_path / FIRST)
    error = refused(tmp_path)
    assert error.message.startswith(f"shard {tmp_path / FIRST} is truncated or damaged: ")
    assert error.hint == "download it again"


def test_an_index_that_names_an_absent_tensor_is_refused(tmp_path: Path) -> None:
    write_bare(tmp_path, shards=3)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    index["weight_map"]["model.norm.weight"] = FIRST
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    assert refused(tmp_path).message == (
        f"{tmp_path / INDEX_FILE} names tensor model.norm.weight, which is not in {FIRST}"
    )


@pytest.mark.parametrize("weight_map", [None, [], "x", {"a": 1}, {"a": ["b"]}])
def test_an_index_without_a_table_of_files_is_refused(weight_map: object, tmp_path: Path) -> None:
    write_bare(tmp_path, shards=3)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    assert refused(tmp_path).message == f"{tmp_path / INDEX_FILE} has no weight_map"


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    write_bare(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    error = refused(tmp_path)
    assert error.message == f"{tmp_path} has no safetensors weights"
    assert error.hint is not None and "pickled weights are not read" in error.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "config.json is missing"),
        ('{"model_type": ', "config.json is not JSON: "),
        ("[1]", "config.json is not a JSON object"),
        ('{"model_type": "llama"}', "model type 'llama' is not supported"),
    ],
)
def test_an_unusable_config_is_one_line(text: str | None, message: str, tmp_path: Path) -> None:
    write_bare(tmp_path)
    (tmp_path / "config.json").unlink()
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert message in refused(tmp_path).message


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    error = refused(tmp_path / "absent")
    assert error.message == f"no such model folder: {tmp_path / 'absent'}"


def test_a_dtype_whose_bytes_are_unknown_is_refused(tmp_path: Path) -> None:
    write_bare(tmp_path)
    header = {"x": {"dtype": "F4", "shape": [4, 4], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
    assert refused(tmp_path).message == f"shard {file}: tensor x has dtype F4, which is not known"


def test_a_checkpoint_without_a_router_has_no_fingerprint(tmp_path: Path) -> None:
    write_bare(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    del checkpoint.stored[MIXTRAL.router_name(1)]
    with pytest.raises(PruneError) as caught:
        checkpoint.fingerprint()
    assert caught.value.message == f"the checkpoint has no tensor {MIXTRAL.router_name(1)}"


def test_a_fingerprint_is_of_content_and_not_of_place_or_shards(tmp_path: Path) -> None:
    write_bare(tmp_path / "one", shards=1)
    write_bare(tmp_path / "three", shards=3)
    config = json.loads((tmp_path / "three" / "config.json").read_text())
    config |= {"transformers_version": "9", "dtype": "float32", "_name_or_path": "x"}
    (tmp_path / "three" / "config.json").write_text(json.dumps(config))
    one, three = (Checkpoint.open(tmp_path / name).fingerprint() for name in ("one", "three"))
    assert one.matches(three)
    assert (one.name, three.name) == ("one", "three")


def test_a_fingerprint_tells_finetunes_shapes_and_configs_apart(tmp_path: Path) -> None:
    write_bare(tmp_path / "base")
    write_bare(tmp_path / "finetune", seed=1)
    write_bare(tmp_path / "wider", experts=5)
    write_bare(tmp_path / "config")
    config = json.loads((tmp_path / "config" / "config.json").read_text())
    (tmp_path / "config" / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    base, finetune, wider, other = (
        Checkpoint.open(tmp_path / name).fingerprint()
        for name in ("base", "finetune", "wider", "config")
    )
    assert (finetune.config, finetune.index) == (base.config, base.index)
    assert finetune.routers != base.routers
    assert wider.index != base.index
    assert (other.index, other.routers) == (base.index, base.routers)
    assert other.config != base.config


def test_a_file_that_shrinks_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    """And no signal that ends the process, as of a file that is mapped into memory."""
    names = list(write_bare(tmp_path))
    checkpoint = Checkpoint.open(tmp_path)
    checkpoint.tensor(names[0])  # the file is open
    file = tmp_path / "model.safetensors"
    os.truncate(file, file.stat().st_size // 3)
    for read in (checkpoint.tensor, checkpoint.raw):
        with pytest.raises(PruneError) as caught:
            read(names[-1])
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    (out := tmp_path / "out").mkdir()
    with pytest.raises(PruneError, match="became shorter while it was read"):
        copies = [Copy(name, info) for name, info in checkpoint.tensors.items()]
        write_shards(checkpoint, copies, out)
