"""Draft layers of released models: under prefixed names, in either form, and kept at full width.

Built from small tensors and read by a reader of its own (released/reader.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from offline.build.build import build, plan_build
from offline.build.mtp import DraftLayers
from offline.cli.main import cli
from tests.families.released.reader import (
    MODELS,
    Named,
    Released,
    bytes_of,
    first_of_each,
    read,
    write,
)
from tests.families.test_released import expected, half, the_map
from tests.sample_maps import uniform_map
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.draft_config import SECTION, own_counts, promised_drafts, without_drafts
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layouts import layout_of
from vllm_moe_prune.rewrite import Drop

pytestmark = pytest.mark.usefixtures("parts_are_enough")

WITH_DRAFTS = [
    name
    for name in MODELS
    if "drafts" in (fields := Released.read(name).fields) and "refused" not in fields
]
STEMS = ("", "model.", "language_model.", "language_model.model.", "model.language_model.")
# One for every family, and the others too where there is time.
QUICK_STEMS = [
    pytest.param(stem, marks=() if stem == "language_model." else pytest.mark.slow)
    for stem in STEMS
]
Renamed = Callable[[str], str]


def drafts_of(model: Released) -> list[Named]:
    return list(model.tensors(model.experts, part="drafts"))


def of_experts(model: Released) -> bool:
    return any("{expert}" in one.pattern or "experts" in one.name for one in drafts_of(model))


def made(
    model: Released, folder: Path, *, drafts: Iterable[Named] = (), **config: Any
) -> Checkpoint:
    tensors = [*model.tensors(model.experts), *drafts]
    whole = model.config(model.experts, model.top_k) | config
    write(folder, whole, tensors, contents=True)
    return Checkpoint.open(folder)


def under(stem: str) -> Renamed:
    """Put ``mtp...`` under another beginning than it has."""
    return lambda name: stem + name.removeprefix("model.")


@pytest.mark.parametrize("stem", QUICK_STEMS)
@pytest.mark.parametrize(
    "name",
    [
        case
        for case in first_of_each(WITH_DRAFTS)
        if any("mtp" in one.name for one in drafts_of(Released.read(case.values[0], small=True)))
    ],
)
def test_draft_layers_are_found_wherever_their_names_begin(
    name: str, stem: str, tmp_path: Path
) -> None:
    model, move = Released.read(name, small=True), under(stem)
    usual = drafts_of(model)
    base = made(
        model, tmp_path / "base", drafts=[replace(one, name=move(one.name)) for one in usual]
    )
    routing_map = the_map(model, base)
    dropped = plan_build(base, routing_map, mtp="drop").operations
    gone = {op.source.name for op in dropped if isinstance(op, Drop)}
    assert {move(one.name) for one in usual} <= gone
    plan = plan_build(base, routing_map, mtp="prune")
    left = {op.target.name: op.target for op in plan.operations if not isinstance(op, Drop)}
    after = {move(one.name): one for one in model.tensors(len(half(model)), part="drafts")}
    assert {name for name in left if base.layout.is_mtp(name)} == after.keys()
    assert {name: left[name].shape for name in after} == {n: one.shape for n, one in after.items()}


@pytest.mark.parametrize("stem", STEMS[1:])
def test_draft_layers_that_are_numbered_on_begin_as_the_others_do(
    stem: str, tmp_path: Path
) -> None:
    model = Released.read("zai-org--GLM-4.5-Air", small=True)

    def moved(part: str, experts: int) -> list[Named]:
        named = model.tensors(experts, part=part)
        return [replace(one, name=stem + one.name.removeprefix("model.")) for one in named]

    config = model.config(model.experts, model.top_k)
    write(tmp_path / "base", config, moved("tensors", 8) + moved("drafts", 8), contents=True)
    base = Checkpoint.open(tmp_path / "base")
    plan = plan_build(base, the_map(model, base), mtp="prune")
    left = {op.target.name for op in plan.operations if not isinstance(op, Drop)}
    assert left == {one.name for part in ("tensors", "drafts") for one in moved(part, 4)}
    assert DraftLayers.of(base).experts == {46: 8}


STACKED = ("Qwen--Qwen3.6-35B-A3B", "Qwen--Qwen3.5-35B-A3B")


@pytest.mark.parametrize("name", STACKED)
@pytest.mark.parametrize("trunk", STACKED)
def test_trunk_and_draft_layers_have_each_their_own_form(
    name: str, trunk: str, tmp_path: Path
) -> None:
    """Stacked or one by one, each of them."""
    model, other = Released.read(name, small=True), Released.read(trunk, small=True)
    if trunk == STACKED[1]:
        other = Released.read("Qwen--Qwen3.5-35B-A3B-FP8", small=True)  # one by one
    base = made(other, tmp_path / "base", drafts=drafts_of(model))
    build(base, the_map(other, base), tmp_path / "out", mtp="prune")
    found = read(tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "routing_map.json").read_text())["provenance"]
    rest = expected(model, settings["settings"]["mtp_kept"]["0"], part="drafts")
    assert {name: found[name] for name in rest} == rest
    assert found.keys() - rest.keys() == expected(other, half(other)).keys()


@pytest.mark.parametrize("name", first_of_each(WITH_DRAFTS))
def test_kept_draft_layers_are_copied_and_say_how_many_experts_they_have(
    name: str, tmp_path: Path
) -> None:
    model = Released.read(name, small=True)
    base = made(model, tmp_path / "base", drafts=drafts_of(model))
    build(base, the_map(model, base), tmp_path / "out", mtp="keep")
    found, before = read(tmp_path / "out"), read(base.folder)
    after = expected(model, half(model))
    assert {name: found[name] for name in after} == after
    assert found.keys() - after.keys() == {one.name for one in drafts_of(model)}
    assert all(found[one.name] == before[one.name] for one in drafts_of(model))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    counts = own_counts(config, base.layout)
    assert counts == ((model.experts, model.top_k) if of_experts(model) else None)
    text = dict(base.layout.text_config(config))
    assert (text.pop(SECTION, None) is None) == (counts is None)
    small = model.config(len(half(model)), min(model.top_k, len(half(model))))
    assert text == base.layout.text_config(small)
    card = (tmp_path / "out" / "README.md").read_text()
    assert (f"keep all {model.experts} experts" in card) == (counts is not None)
    shown = CliRunner().invoke(cli, ["inspect", str(tmp_path / "out"), "--json"])
    drafts = json.loads(shown.stdout)["drafts"]
    assert drafts["layers"] and set(drafts["experts"].values()) == {counts[0]} if counts else True


def test_what_was_built_with_full_width_is_pruned_again(tmp_path: Path) -> None:
    model = Released.read("zai-org--GLM-4.5-Air", small=True)
    base = made(model, tmp_path / "base", drafts=drafts_of(model))
    the_map(model, base).save(tmp_path / "map")
    words = ["build", "--model", str(base.folder), "--map", str(tmp_path / "map"), "--mtp", "keep"]
    built = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "once")])
    assert "layers keep 8 experts, the others at most 4" in built.stderr
    once = Checkpoint.open(tmp_path / "once")
    assert own_counts(once.config, once.layout) == (8, 2)
    narrower = uniform_map(once.folder, [[1, 3]] * len(once.expert_counts()), top_k=1)
    for choice, counts in (("keep", (8, 2)), ("prune", None), ("drop", None)):
        build(once, narrower, tmp_path / choice, mtp=choice)  # type: ignore[arg-type]
        again = Checkpoint.open(tmp_path / choice)
        assert own_counts(again.config, again.layout) == counts
        assert (SECTION in again.config) == (choice == "keep")


def test_experts_under_unknown_names_are_not_copied_as_they_are(tmp_path: Path) -> None:
    """But left out with the rest, if that is what is asked."""
    model = Released.read("Qwen--Qwen3-30B-A3B", small=True)
    odd = Named("mtp.layers.0.mlp.experts.gate_up_proj", "", None, "BF16", (8, 8, 4))
    base = made(model, tmp_path / "base", drafts=[odd])
    routing_map = the_map(model, base)
    for choice in ("keep", "prune"):
        with pytest.raises(PruneError, match=r"mtp\.layers\.0\.mlp.* looks like experts of an"):
            plan_build(base, routing_map, mtp=choice)  # type: ignore[arg-type]
    plan = plan_build(base, routing_map, mtp="drop")
    assert plan.operations[-1] == Drop(base.tensors[odd.name])


@pytest.mark.parametrize(
    ("name", "more", "promised", "after"),
    [
        ("MiniMaxAI--MiniMax-M2.5", {}, {"num_mtp_modules": 3}, {"num_mtp_modules": 0}),
        (
            "zai-org--GLM-4.5-Air",
            {"num_mtp_layers": 1},
            {"num_nextn_predict_layers": 1, "num_mtp_layers": 1},
            {"num_nextn_predict_layers": 0, "num_mtp_layers": 0},
        ),
        (
            "Qwen--Qwen3.5-35B-A3B",
            {},
            {"text_config.mtp_num_hidden_layers": 1},
            {"text_config.mtp_num_hidden_layers": 0},
        ),
    ],
)
def test_layers_that_are_promised_and_not_there_are_said(
    name: str,
    more: dict[str, int],
    promised: dict[str, int],
    after: dict[str, int],
    tmp_path: Path,
) -> None:
    model = Released.read(name, small=True)
    base = made(model, tmp_path / "base", **more)
    assert promised_drafts(base.config, base.layout) == promised
    the_map(model, base).save(tmp_path / "map")
    said = DraftLayers.of(base).missing()
    assert said is not None and all(key in said for key in promised) and "have none" in said
    words = ["build", "--model", str(base.folder), "--map", str(tmp_path / "map"), "--out"]
    built = CliRunner().invoke(cli, [*words, str(tmp_path / "out")])
    assert built.exit_code == 0 and said in built.stderr
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert promised_drafts(config, base.layout) == promised  # nobody asked for anything else
    dropped = CliRunner().invoke(cli, [*words, str(tmp_path / "none"), "--mtp", "drop"])
    assert dropped.exit_code == 0 and "promises" not in dropped.stderr
    config = json.loads((tmp_path / "none" / "config.json").read_text())
    assert promised_drafts(config, base.layout) == {}
    for key, value in after.items():
        *sections, last = key.split(".")
        place = config
        for section in sections:
            place = place[section]
        assert place[last] == value
    shown = CliRunner().invoke(cli, ["inspect", str(base.folder)])
    assert said in shown.stdout.replace("\n", " ")
    assert "promises" not in CliRunner().invoke(cli, ["inspect", str(tmp_path / "none")]).stdout


def test_a_model_that_promises_nothing_says_nothing(tmp_path: Path) -> None:
    base = made(Released.read("Qwen--Qwen3-30B-A3B", small=True), tmp_path / "base")
    assert DraftLayers.of(base).missing() is None
    assert "drafts" not in json.loads(
        CliRunner().invoke(cli, ["inspect", str(base.folder), "--json"]).stdout
    )


def test_lists_that_go_on_for_draft_layers_end_with_the_others() -> None:
    """Step's: transformers refuses a list that is longer than the layers are many."""
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    text = {
        "num_hidden_layers": 3,
        "num_nextn_predict_layers": 1,
        "layer_types": kinds,
        "swiglu_limits": [None, None, 7.0],
        "rope_theta": [1e4, 1e6, 1e4, 1e4],
    }
    config = {"model_type": "step3p7", "text_config": text}
    found = without_drafts(config, layout_of(config), there_were=True)
    assert found["text_config"] == {
        "num_hidden_layers": 3,
        "num_nextn_predict_layers": 0,
        "layer_types": kinds[:3],
        "swiglu_limits": [None, None, 7.0],
        "rope_theta": [1e4, 1e6, 1e4],
    }


def test_bytes_differ_between_tensors() -> None:
    """What the tests above compare would be equal to anything else otherwise."""
    first, second = drafts_of(Released.read(WITH_DRAFTS[0], small=True))[:2]
    assert bytes_of(first) != bytes_of(second)
