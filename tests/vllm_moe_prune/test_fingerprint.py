"""A fingerprint knows the weights: a finetune whose routers are the same is another base."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.vllm_moe_prune.bare import BASE, map_of, write_bare
from vllm_moe_prune import fingerprint, weights_digest
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.fingerprint import VERIFY, BaseFingerprint
from vllm_moe_prune.headers import read_headers

FILE = "model.safetensors"


def print_of(folder: Path) -> BaseFingerprint:
    return Checkpoint.open(folder).fingerprint()


def changed(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> BaseFingerprint:
    """Change tensors of a checkpoint of one file."""
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)
    return print_of(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.block_sparse_moe.experts.3.w2.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.embed_tokens.weight",
    ],
)
def test_other_weights_under_the_same_routers_are_another_base(name: str, tmp_path: Path) -> None:
    write_bare(tmp_path / "base")
    before = print_of(tmp_path / "base")
    after = changed(tmp_path / "base", lambda tensors: tensors[name].__imul__(np.float32(1.01)))
    assert (after.config, after.index, after.routers) == (
        before.config,
        before.index,
        before.routers,
    )
    assert before.difference(after) == "weights"
    with pytest.raises(PruneError, match="the weights hash differs"):
        map_of(base=before.model_dump()).check_base(after, {0: 8})


def test_shards_do_not_matter_and_nothing_is_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bare(tmp_path / "one")
    write_bare(tmp_path / "three", shards=3)
    one, three = print_of(tmp_path / "one"), print_of(tmp_path / "three")
    assert one.weights is not None and one.weights == three.weights
    monkeypatch.setattr(weights_digest, "_read", None)
    assert print_of(tmp_path / "one") == one


def test_every_expert_of_a_stacked_tensor_is_looked_at(tmp_path: Path) -> None:
    """Each of 16 experts has one sample: to change any is noticed."""
    rng = np.random.default_rng(0)
    stacked = rng.normal(size=(16, 64, 32)).astype(np.float32)
    found = set()
    for expert in range(-1, 16):
        tensor = stacked.copy()
        if expert >= 0:
            tensor[expert] += 1
        file = tmp_path / f"{expert}.safetensors"
        save_file({"experts": tensor}, file)
        stored = {one.info.name: one for one in read_headers([file])}
        found.add(weights_digest.sampled(stored, lambda _: 16))
    assert len(found) == 17


def test_a_sample_is_64_bytes_within_its_part_and_all_of_what_is_smaller(tmp_path: Path) -> None:
    save_file({"a": np.zeros((8, 100), np.uint8), "b": np.zeros(3, np.uint8)}, tmp_path / FILE)
    by_name = {one.info.name: one for one in read_headers([tmp_path / FILE])}
    ranges = weights_digest._samples(by_name["a"], 8)
    begin = by_name["a"].begin
    for part, (first, last) in enumerate(ranges):
        assert begin + 100 * part <= first < last <= begin + 100 * (part + 1)
        assert last - first == 64
    small = by_name["b"]
    assert weights_digest._samples(small, 1) == [(small.begin, small.end)]


def test_one_byte_is_seen_where_all_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bare(tmp_path / "base")
    tensors = load_file(tmp_path / "base" / FILE)
    tensors["model.embed_tokens.weight"] = np.zeros((10, 400), np.float32)
    save_file(tensors, tmp_path / "base" / FILE)
    monkeypatch.setenv(VERIFY, "1")
    before = print_of(tmp_path / "base")
    (first, last), *_ = weights_digest._samples(
        Checkpoint.open(tmp_path / "base").stored["model.embed_tokens.weight"], 1
    )
    with (tmp_path / "base" / FILE).open("r+b") as stream:
        stream.seek(last + 4)
        stream.write(b"\1")
    after = print_of(tmp_path / "base")
    assert first < last
    assert before.weights == after.weights
    assert before.difference(after) == "whole"
    monkeypatch.delenv(VERIFY)
    assert before.difference(print_of(tmp_path / "base")) is None


def test_what_was_made_before_loads_and_says_what_was_not_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_bare(tmp_path / "base")
    now = print_of(tmp_path / "base")
    old = now.model_dump(exclude={"weights", "whole"})
    fingerprint._note.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            map_of(base=old).check_base(now, {0: 8})
    assert caplog.text.count("made before weights were told apart") == 1
    map_of(base=old).save(tmp_path / "map")
    assert '"weights"' not in (tmp_path / "map" / "routing_map.json").read_text()


def test_without_the_files_there_is_no_digest(tmp_path: Path) -> None:
    write_bare(tmp_path / "base")
    stored = Checkpoint.open(tmp_path / "base").stored
    (tmp_path / "base" / FILE).unlink()
    assert weights_digest.sampled(stored, lambda _: 1) is None
    assert weights_digest.whole(stored) is None
    assert BASE.matches(BASE.model_copy(update={"weights": "sha256:w"}))
