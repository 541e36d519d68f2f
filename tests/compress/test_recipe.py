"""One schema for flags and recipe files: flags win, and every mistake is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from offline.compress.methods import METHODS
from offline.compress.recipe.eep import EepRecipe
from offline.compress.recipe.lottery import LotteryRecipe
from offline.compress.recipe.one_shot import BaselineRecipe, OneShotRecipe
from offline.compress.recipe.reading import read_recipe, recipe_of
from offline.compress.recipe.recipe import fields_of, sections_of
from vllm_moe_prune.errors import PruneError

BASE: dict[str, Any] = {"model": Path("base"), "keep": 4}
SECTIONS = """\
base: {model: base}
method: {keep: 4, seed: 7}
search: {groups: layer, racing: false}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def eep_of(flags: dict[str, Any], file: Path | None = None) -> EepRecipe:
    recipe = recipe_of(flags, file)
    assert isinstance(recipe, EepRecipe)
    return recipe


def test_every_method_has_its_own_recipe() -> None:
    kinds = {name: type(recipe_of(BASE | {"method": name})) for name in METHODS}
    assert kinds == {
        "eep": EepRecipe,
        "oneshot": OneShotRecipe,
        "lottery": LotteryRecipe,
        "random": BaselineRecipe,
        "frequency": BaselineRecipe,
        "soft_activation": BaselineRecipe,
        "naee": BaselineRecipe,
    }


@pytest.mark.parametrize("name", METHODS)
def test_a_flag_says_one_thing(name: str) -> None:
    """Flags have no sections: no two settings of one recipe may have the same flag."""
    fields = sum(
        len(section.model_fields) for section in sections_of(METHODS[name].recipe).values()
    )
    assert len(fields_of(METHODS[name].recipe)) == fields


def test_flags_override_the_recipe_and_the_recipe_the_defaults(file: Path) -> None:
    file.write_text(SECTIONS)
    found = eep_of({"keep": 2, "seed": None, "top_k": "1"}, file)
    method = found.method
    assert (found.base.model, method.keep, method.seed, method.top_k) == (Path("base"), 2, 7, "1")
    assert (found.search.groups, method.name, found.search.evaluations) == ("layer", "eep", None)
    assert found.races is False and found.seeds is True


def test_a_file_may_say_everything_that_flags_say(file: Path) -> None:
    for name in METHODS:
        known = fields_of(METHODS[name].recipe)
        assert {"model", "method", "keep", "ratio", "friendly", "seed", "mtp"} <= known.keys()
    file.write_text("base: {model: base}\nmethod: {name: eep, ratio: 0.5, friendly: true}\n")
    assert (
        eep_of({}, file).method == eep_of({"model": "base", "ratio": 0.5, "friendly": True}).method
    )


def test_the_method_and_the_engine_may_be_a_word(file: Path) -> None:
    file.write_text("base: {model: base, }\nmethod: lottery\nengine: transformers\n")
    found = recipe_of({"keep": 4}, file)
    assert (found.method.name, found.engine.name) == ("lottery", "transformers")


def test_a_number_of_active_experts_in_a_file_is_meant_for_all_layers(file: Path) -> None:
    file.write_text("base: {model: base}\nmethod: {keep: 4, top_k: 1}\n")
    assert recipe_of({}, file).method.active == "1"


def test_a_file_of_version_0_1_is_read_with_a_note(file: Path) -> None:
    file.write_text("model: base\nkeep: 4\nseed: 7\ngroups: layer\nheld_out: 8\ntask: sciq\n")
    found, notes = read_recipe({"keep": 2}, file)
    assert found == recipe_of(BASE | {"keep": 2, "seed": 7, "groups": "layer"})
    assert notes == (
        f"recipe {file} has no sections: it is read as version 0.1 wrote it (docs/recipe.md)",
        f"recipe {file}: held_out is lottery's and is left out",
    )


@pytest.mark.parametrize("size", [{"keep": 2}, {"ratio": 0.5}, {"budget": 9}])
def test_a_size_takes_the_place_of_the_file_s(size: dict[str, Any], file: Path) -> None:
    file.write_text(SECTIONS)
    assert eep_of(size, file).method == eep_of({"model": "base", "seed": 7, **size}).method


def test_a_method_that_takes_the_place_of_the_file_s_has_no_use_for_its_sections(
    file: Path,
) -> None:
    file.write_text(SECTIONS)
    with pytest.raises(PruneError) as caught:
        recipe_of({"method": "lottery"}, file)
    assert caught.value.message == f"recipe {file}: section search is not lottery's"


def test_groups_may_be_a_number_in_a_file(file: Path) -> None:
    file.write_text("base: {model: base}\nmethod: {keep: 4}\nsearch: {groups: 2}\n")
    assert eep_of({}, file).search.num_groups(24) == 2


def test_a_file_with_sections_is_read_without_a_note(file: Path) -> None:
    file.write_text(SECTIONS)
    assert read_recipe({}, file)[1] == ()


def test_baselines_are_named_once_each() -> None:
    def baselines(words: str) -> tuple[str, ...]:
        return recipe_of(BASE | {"compare": words}).measure.baselines

    assert baselines("naee, random,naee") == ("naee", "random")
    assert baselines("none") == ()


def test_what_decided_comes_first_and_nothing_of_other_methods() -> None:
    told = recipe_of(BASE | {"seed": 3, "children": 8, "device": "cpu"}).settings()
    assert list(told)[:4] == ["method", "keep", "seed", "children"]
    assert told["method"] == "eep" and told["search_items"] == 200
    assert None not in told.values()
    assert not {"model", "device", "rounds", "held_out", "criterion"} & told.keys()


def test_what_is_told_has_the_defaults_and_the_numbers_by_themselves() -> None:
    told = recipe_of(BASE | {"evaluations": 40}).told(24)
    assert list(told) == ["method", "keep", "evaluations", "defaults", "search"]
    defaults, numbers = told["defaults"], told["search"]
    assert isinstance(defaults, dict) and isinstance(numbers, dict)
    assert (defaults["groups"], numbers["num_evaluations"]) == ("4", 40)
    assert "evaluations" not in defaults


def test_numbers_are_those_that_were_used() -> None:
    found = recipe_of(BASE | {"evaluations": 40}).numbers(24)["search"]
    assert isinstance(found, dict)
    assert (found["num_evaluations"], found["num_initial"], found["children"]) == (40, 4, 8)
    found = recipe_of(BASE | {"method": "lottery", "preset": "paper"}).numbers(24)["lottery"]
    assert isinstance(found, dict)
    assert (found["round_tokens"], found["criterion"]) == (200_000, "min-ean")
    assert recipe_of(BASE | {"method": "random"}).numbers(24) == {}


OTHERS = [
    ({"rounds": 3}, "settings: --rounds is lottery's; this is eep"),
    ({"method": "lottery", "evaluations": 3}, "settings: --evaluations is eep's; this is lottery"),
    (
        {"method": "lottery", "top_k": "1"},
        "--top-k is eep, oneshot, random, frequency, soft_activation and naee's",
    ),
    ({"method": "random", "guard": 0.1}, "settings: --guard is eep's; this is random"),
    ({"method": "frequency", "budget": 9}, "--budget is eep and oneshot's; this is frequency"),
    ({"criterion": "min-ean"}, "settings: --criterion is oneshot and lottery's; this is eep"),
    ({"magic": 1}, "settings: magic: there is no such setting"),
]


@pytest.mark.parametrize(("flags", "message"), OTHERS, ids=[m for _, m in OTHERS])
def test_a_setting_of_another_method_is_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneError) as caught:
        recipe_of(BASE | flags)
    assert message in caught.value.message


SIZE = "give one of --keep (experts per layer), --ratio and --budget (in all layers)"
MISTAKES = [
    ("method: {keep: 4}\n", "model: Field required", "add --model"),
    ("base: {model: base}\n", f"{SIZE}", None),
    ("base: {model: base}\nmethod: {keep: 4, ratio: 0.5}\n", SIZE, None),
    (
        "base: {model: base}\nmethod: {budget: 4, friendly: true}\n",
        "--friendly rounds --keep; a search spreads --budget expert by expert: plan with "
        "vmprune plan --budget N --friendly",
        None,
    ),
    (
        "base: {model: base}\nmethod: {keep: 4}\nmeasure: {compare: magic}\n",
        "--compare: 'magic' is none of random, frequency, soft_activation, naee, none, "
        "nor a criterion such as min-ean",
        None,
    ),
    (
        "base: {model: base}\nmethod: {experts: 4}\n",
        "method.experts: there is no such setting",
        "method has name, keep, ratio, friendly, router, seed, top_k, budget, floor, preset",
    ),
    (
        "base: {model: base}\nmethod: {keep: 4, rounds: 3}\n",
        "method.rounds is lottery's; this is eep",
        None,
    ),
    (
        "base: {model: base}\nmethod: {keep: 4}\ndata: {evaluations: 3}\n",
        "data.evaluations: there is no such setting",
        "it is search.evaluations",
    ),
    ("base: {model: base}\nseed: 3\n", "there is no section 'seed'", "it is method.seed"),
    ("base: {model: base}\nmethod: [eep]\n", "section method is not a table of settings", None),
    (
        "base: {model: base}\nmethod: {name: [eep]}\n",
        "method ['eep'] is none of eep, oneshot, lottery, random, frequency, soft_activation, naee",
        None,
    ),
    (
        "model: base\nmethod: evolution\nkeep: 4\n",
        "method 'evolution' is none of eep, oneshot, lottery, random, frequency, soft_activation, "
        "naee",
        None,
    ),
    (
        "base: {model: base}\nspeed: {fast: true}\n",
        "there is no section 'speed'",
        "one of base, method, data, prompting, measure, engine, output, search",
    ),
    (
        "base: {model: base}\nmethod: {keep: 4}\nlottery: {rounds: 2}\n",
        "section lottery is not eep's",
        "leave it out",
    ),
    ("base: {model: base}\ndata: sciq\n", "section data is not a table of settings", None),
    (
        "base: {model: base}\nmethod: {keep: 0}\n",
        "keep: Input should be greater than or equal to 1",
        None,
    ),
    (
        "base: {model: base}\nmethod: {name: magic, keep: 4}\n",
        "method 'magic' is none of eep, oneshot, lottery, random, frequency, soft_activation, naee",
        None,
    ),
]


@pytest.mark.parametrize(("text", "message", "hint"), MISTAKES, ids=[m for _, m, _ in MISTAKES])
def test_a_wrong_entry_is_named(text: str, message: str, hint: str | None, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(PruneError) as caught:
        recipe_of({}, file)
    assert caught.value.message == f"recipe {file}: {message}"
    assert caught.value.hint == hint


def test_without_a_recipe_the_missing_flag_is_named() -> None:
    with pytest.raises(PruneError) as caught:
        recipe_of({"model": None, "keep": 4})
    assert str(caught.value) == "settings: model: Field required (hint: add --model)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "is not a table of settings"),
        ("", "is not a table of settings"),
        ("keep: [4\n", "is not YAML: "),
        ("[" * 3000, "is nested too deeply"),
        ("method: {keep: 4}\nmethod: {}\n", ".yaml: method is given twice (line 2)"),
        ("method:\n  keep: 4\n  seed: 1\n  keep: 5\n", "keep is given twice (line 4)"),
        (None, "no recipe file at "),
    ],
)
def test_a_file_that_is_no_recipe_is_one_line(text: str | None, message: str, file: Path) -> None:
    if text is not None:
        file.write_text(text)
    with pytest.raises(PruneError) as caught:
        recipe_of({}, file)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="is a folder"):
        recipe_of({}, tmp_path)


@pytest.mark.parametrize(("groups", "count"), [("4", 4), ("layer", 24), ("1", 1)])
def test_groups_are_a_number_or_one_per_layer(groups: str, count: int) -> None:
    assert eep_of(BASE | {"groups": groups}).search.num_groups(24) == count


@pytest.mark.parametrize("groups", ["0", "-1", "many", ""])
def test_other_groups_are_refused(groups: str) -> None:
    with pytest.raises(PruneError, match="is neither a number nor `layer`"):
        eep_of(BASE | {"groups": groups}).search.num_groups(24)
