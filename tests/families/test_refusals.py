"""A refusal that names another way names one that is open, for every family, format and engine."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from offline.calibration.needs import open_base
from offline.calibration.stored import check_readable
from offline.check.check import _inputs
from offline.compress.prepared import check_model
from offline.compress.recipe.reading import recipe_of
from offline.engines.needs import check_evaluable
from offline.engines.quantised import need
from tests.families.bare import Parts, write_bare
from tests.families.quantised import FORMATS
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layouts import LAYOUTS

pytestmark = pytest.mark.usefixtures("parts_are_enough")

ENGINES = ("transformers", "vllm")
METHODS = ("eep", "frequency")
# What each way out is called in a hint, and which asking it means.
WAYS: dict[str, Callable[[Asking], Asking]] = {
    r"vmprune score --engine vllm": lambda one: Asking("score", "vllm"),
    r"vmprune score, plan and build": lambda one: Asking("score", "vllm"),
    r"--engine vllm --phases prune": lambda one: replace(one, engine="vllm", more="prune"),
    r"(?<!score )--engine vllm(?! --phases)": lambda one: replace(one, engine="vllm"),
    r"--engine transformers(?! --phases)": lambda one: replace(one, engine="transformers"),
    r"--engine transformers --phases prune": lambda one: replace(
        one, engine="transformers", more="prune"
    ),
    r"--offload": lambda one: replace(one, more="offload"),
    r"(?<!vllm )(?<!transformers )--phases prune": lambda one: replace(one, more="prune"),
    r"--method lottery": lambda one: Asking("lottery", one.engine),
    r"--endpoint": lambda one: Asking("endpoint", one.engine),
}


@dataclass(frozen=True, slots=True)
class Asking:
    """A command, its engine, and what else is said."""

    command: str
    engine: str
    more: str = ""


def askings() -> Iterator[Asking]:
    for engine in ENGINES:
        yield from (Asking(name, engine) for name in ("score", "eval", "check", *METHODS))
        yield Asking("eep", engine, "prune")
    yield Asking("lottery", "transformers")  # which trains
    yield Asking("score", "transformers", "gradients")
    yield Asking("score", "transformers", "offload")


def refused(model: Path, one: Asking) -> PruneError | None:
    """What is said before anything is loaded, if it is not to be."""
    live = one.engine == "vllm"
    try:
        if one.command == "score":
            gradients, offload = one.more == "gradients", one.more == "offload"
            open_base(model, length=8, in_vllm=live, gradients=gradients, in_parts=offload)
            if live:
                check_readable(Checkpoint.open(model))
        elif one.command == "eval":
            check_evaluable(model, None, allow_other=False, engine=one.engine)
        elif one.command == "check":
            _inputs(model, None, "auto", one.engine, 1)
        elif one.command != "endpoint":
            phases = {"phases": one.more or "both"} if one.command == "eep" else {}
            settings = {"model": model, "keep": 4, "method": one.command, "engine": one.engine}
            check_model(recipe_of({**settings, **phases, "mtp": "drop"}))
    except PruneError as error:
        return error
    return None


QUANTISED: dict[str, Callable[[torch.Tensor], Parts] | None] = {
    "unquantised": None,
    "fp8": FORMATS["fp8"],
    "unknown": lambda weight: {"weight": weight.to(torch.float8_e4m3fn)},
}
# A plain top-k, stacked experts, a correction bias with groups, and another router.
ALWAYS = ("mixtral", "gpt_oss", "deepseek_v3", "phimoe")
FAMILIES = [
    pytest.param(family, marks=() if family in ALWAYS else pytest.mark.slow) for family in LAYOUTS
]


def models(family: str, folder: Path) -> Iterator[Path]:
    layout = LAYOUTS[family]
    for groups in (1, 2) if layout.num_groups_key else (1,):
        for name, parts_of in QUANTISED.items():
            if name == "unknown" and layout.expert is None:
                continue
            settings = {"quant_method": "fp8"} if parts_of else None
            out = folder / f"{name}-{groups}"
            yield write_bare(family, out, groups=groups, parts_of=parts_of, settings=settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_way_out_is_shut(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With memory for the dequantised weights, and without."""
    for model, memory in itertools.product(list(models(family, tmp_path)), (2**40, 2**10)):
        monkeypatch.setattr(need, "free_bytes", lambda device, size=memory: size)
        for one in askings():
            error = refused(model, one)
            hint = (error and error.hint) or ""
            for way in (way for pattern, way in WAYS.items() if re.search(pattern, hint)):
                other = refused(model, way(one))
                said = f"{model.name}, {one}: {error}; but {way(one)}: {other}"
                assert other is None, said


@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_models_have_scores_and_checks(family: str, tmp_path: Path) -> None:
    """Whatever the router is: in transformers where there is room, in vLLM for scores always."""
    model = write_bare(
        family, tmp_path / "q", parts_of=FORMATS["int8"], settings={"quant_method": "x"}
    )
    for one in (
        *(Asking("score", engine) for engine in ENGINES),
        *(Asking(command, "transformers") for command in ("eval", "check")),
        Asking("score", "transformers", "gradients"),
    ):
        assert refused(model, one) is None, one
    trained = refused(model, Asking("lottery", "transformers"))
    assert trained is not None and "needs the original weights" in trained.message
