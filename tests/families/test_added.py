"""A family is added as docs/families.md says: `inspect --explain`, an entry, and it is built."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.command import invoke
from tests.families.released.reader import read
from tests.floors import ROOT
from tests.sample_maps import uniform_map
from vllm_moe_prune import layout as layouts_module
from vllm_moe_prune.families import parts
from vllm_moe_prune.form import Form
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.layouts import LAYOUTS

pytestmark = pytest.mark.usefixtures("parts_are_enough")

EXPERTS, LAYERS, SIZE = 6, 3, 4
BLOCK = "decoder.layers.{}.sparse."
CONFIG = {
    "model_type": "made_up_moe",
    "num_hidden_layers": LAYERS,
    "hidden_size": 32,
    "sparse": {"count": EXPERTS, "top_k": 2},
}


def write_made_up(folder: Path) -> dict[str, Any]:
    """A family that nobody has: two-matrix experts, the first layer without any."""
    rng = np.random.default_rng(0)
    names: dict[str, tuple[int, ...]] = {"decoder.embed.weight": (10, SIZE)}
    for layer in range(LAYERS):
        block = BLOCK.format(layer)
        names[block + "norm.weight"] = (SIZE,)
        if layer == 0:
            continue
        names[block + "router.weight"] = (EXPERTS, SIZE)
        names[block + "router_offset"] = (EXPERTS,)
        names[block + "shared.up.weight"] = (8, SIZE)
        for expert in range(EXPERTS):
            names[f"{block}experts.{expert}.up.weight"] = (8, SIZE)
            names[f"{block}experts.{expert}.down.weight"] = (SIZE, 8)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in names.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return tensors


def test_the_entry_on_the_page_is_that_of_its_family_in_ten_lines() -> None:
    page = (ROOT / "docs" / "families.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    text = "\n".join(line.strip() for line in code.splitlines())
    assert len(text.splitlines()) <= 10
    made = eval(text, {**vars(parts), **vars(layouts_module)})
    assert made == LAYOUTS[made.model_type]


def test_a_made_up_family_is_explained_added_inspected_and_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    tensors = write_made_up(base)
    facts = json.loads(invoke("inspect", base, "--explain", "--json").stdout)
    assert facts["experts_per_layer"] == {"1": EXPERTS, "2": EXPERTS}
    told = "\n".join(facts["recognised"])
    assert "number of experts in config.json: sparse.count = 6" in told
    assert "active experts in config.json: sparse.top_k = 2" in told
    assert (
        "in the same blocks, and taken for no part of experts: decoder.layers.{layer}.sparse.norm"
        in told
    )
    first, _, code = facts["form"].partition("\n")
    entry = MoeLayout(
        "made_up_moe",
        (eval(code, {"Form": Form}),),
        num_experts_key="sparse.count",
        top_k_key="sparse.top_k",
        layer=eval(first.removeprefix("layer=")),
    )
    monkeypatch.setitem(LAYOUTS, "made_up_moe", entry)  # type: ignore[arg-type]
    shown = json.loads(invoke("inspect", base, "--json").stdout)
    assert shown["experts_per_layer"] == {"1": EXPERTS, "2": EXPERTS} and shown["top_k"] == 2
    kept = [(5, 0, 2), (1, 3, 4)]
    uniform_map(base, kept).save(tmp_path / "map")
    words = ["build", "--model", base, "--map", tmp_path / "map", "--out", tmp_path / "out"]
    assert invoke(*words).exit_code == 0
    expected = {n: one for n, one in tensors.items() if "experts." not in n}
    for layer, ids in enumerate(kept, start=1):
        block = BLOCK.format(layer)
        for name in ("router.weight", "router_offset"):
            expected[block + name] = tensors[block + name][list(ids)]
        for new, old in enumerate(ids):
            for one in ("up", "down"):
                source = tensors[f"{block}experts.{old}.{one}.weight"]
                expected[f"{block}experts.{new}.{one}.weight"] = source
    found = read(tmp_path / "out")
    assert {name: content for name, (_, _, content) in found.items()} == {
        name: one.tobytes() for name, one in expected.items()
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == CONFIG | {"sparse": {"count": 3, "top_k": 2}}
