"""A checkpoint of any size that takes no disk: real headers over holes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from vllm_moe_prune.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint

_ITEM_BYTES = 4


def make_sparse(base: Path, folder: Path, *, intermediate: int, shards: int = 2) -> Path:
    """Write a Mixtral that is ``base`` with wider experts; its weights are zeros in holes."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((folder / "config.json").read_text())
    before, config["intermediate_size"] = config["intermediate_size"], intermediate
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        name: [intermediate if ".experts." in name and n == before else n for n in info.shape]
        for name, info in Checkpoint.open(base).tensors.items()
    }
    names, weight_map = list(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[number::shards]
        _write(folder / file, {name: tensors[name] for name in mine})
        weight_map |= dict.fromkeys(mine, file)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert not (folder / SINGLE_FILE).exists()
    return folder


def _write(file: Path, shapes: dict[str, list[int]]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        size = _ITEM_BYTES
        for n in shape:
            size *= n
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
