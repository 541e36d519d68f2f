"""What the documents name is there: linked pages, files, commands with their flags, make's targets.

Code blocks and inline code of README, CONTRIBUTING, CHANGELOG and docs/ are read, and the texts of
commands' helps and of reports for the pages that they name.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib import util
from pathlib import Path

import click
import pytest

from offline.cli.lazy import LazyCommand
from offline.cli.main import cli
from offline.cli.quiet import with_quiet
from tests.floors import FLOORS, ROOT, name_of

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^( *)```[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^\n)((?: {4}\S.*\n)(?: {4,}.*\n)*)", re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`")
ROOMS = "benchmarks|deploy|docs|loadtest|offline|requirements|serve|tests|vllm_moe_prune"
FILE = re.compile(rf"(?<![\w./-])((?:{ROOMS})/[\w./-]*[\w/])")
# Flags that are another program's: vLLM's, locust's, hf's, pip's, pytest's, git's, a later tool's.
OTHERS = frozenset(
    (
        *(
            "api-server-count",
            "attention-backend",
            "compilation-config",
            "config",
            "download-dir",
            "enable-eplb",
        ),
        *("enable-return-routed-experts", "moe-backend"),
        *("enable-expert-parallel", "enable-lora", "enforce-eager", "exclude", "expect-workers"),
        *("headless", "host", "include", "limit-mm-per-prompt", "load-format", "local-dir"),
        *(
            "lora-modules",
            "lora-target-modules",
            "master",
            "master-host",
            "max-loras",
            "moe-backend",
            "reasoning-parser",
        ),
        *("model-loader-extra-config", "no-deps", "repo-type", "revision", "speculative-config"),
        *(
            "from-literal",
            "gpu-memory-utilization",
            "max-num-seqs",
            "now",
            "served-model-name",
            "uds",
        ),
        *("tensor-parallel-size", "worker"),
    )
)
MAKE = re.compile(r"^make ([a-z][a-z-]*)")


def text_of(page: Path) -> str:
    return page.read_text()


def blocks_of(text: str) -> Iterator[str]:
    """Yield the code blocks, fenced or indented by four."""
    for match in FENCE.finditer(text):
        yield match.group(2)
    for match in INDENTED.finditer(FENCE.sub("", text)):
        yield match.group(1)


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the words of all command lines in code blocks, and of inline code."""
    for block in blocks_of(text):
        for line in block.replace("\\\n", " ").splitlines():
            yield from _words(line.strip().removeprefix("$ "))
    for match in INLINE.finditer(FENCE.sub("", text)):
        yield from _words(" ".join(match.group(1).split()))


def _words(line: str) -> Iterator[list[str]]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # prose or code with a lone quote
        return
    if words:
        yield words


@cache
def flags_of(*path: str) -> frozenset[str] | None:
    """Return all flags of a `vmprune` command; None if there is no such command."""
    command: click.Command = cli
    for name in path:
        if not isinstance(command, click.Group) or name not in command.commands:
            return None
        command = command.commands[name]
        if isinstance(command, LazyCommand):
            command = command.load()
        if not isinstance(command, click.Group):
            with_quiet(command)
    found = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)}
    return frozenset(found | {"--help", "-h"})


def complaints(words: list[str]) -> list[str]:
    """Return what of one command line of ours is not there."""
    if words[0] == "make" and len(words) > 1:
        target = MAKE.match(" ".join(words))
        known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return [f"make {words[1]}"] if target and target.group(1) not in known else []
    if words[:2] == ["python", "-m"] and len(words) > 2:
        module = words[2]
        ours = module.partition(".")[0] in ROOMS.split("|")
        ours = ours and module.islower()  # benchmarks.NAME is any of them
        return [module] if ours and util.find_spec(module) is None else []
    if words[0] != "vmprune" or len(words) == 1 or words[1].startswith("-"):
        return []
    path = words[1:3] if words[1] == "demo" and len(words) > 2 else words[1:2]
    known = flags_of(*path)
    if known is None:
        return [" ".join(words[:2])]
    own = words[2 : words.index("--")] if "--" in words else words[2:]  # the rest is another's
    flags = (word.partition("=")[0] for word in own if re.match(r"--?[a-z]", word))
    return [f"{' '.join(path)} {flag}" for flag in flags if flag not in known]


def missing_files(text: str) -> list[str]:
    """Return the paths inside the repository that a text names and that are not there."""
    found = {name.rstrip("/.") for name in FILE.findall(text)}
    return sorted(name for name in found if not (ROOT / name).exists() and "NN" not in name)


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", head.lower()) for head in heads)
    return frozenset(head.strip().replace(" ", "-") for head in plain)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = FENCE.sub("", text_of(page))
    wrong = []
    for one, other in LINK.findall(text):
        link = one or other
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_flags_modules_and_targets_exist(page: Path) -> None:
    assert [wrong for words in commands_of(text_of(page)) for wrong in complaints(words)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_named_alone_are_flags_of_something(page: Path) -> None:
    named = set(re.findall(r"(?<=[`\s|(])--([a-z][a-z-]+)", text_of(page)))
    assert sorted(named - all_flags() - OTHERS) == []


@cache
def all_flags() -> frozenset[str]:
    """Return all flags of `vmprune`, and what our other programs' sources name as flags."""
    paths = [(name,) for name in cli.commands if name != "demo"]
    ours = {flag for path in [*paths, ("demo", "run"), ("demo", "model")] for flag in known(path)}
    folders = ("benchmarks", "loadtest", "tests")
    files = (file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    named = {
        one for file in files for one in re.findall(r"[\"/]--([a-z][a-z-]+)", file.read_text())
    }
    return frozenset({flag.lstrip("-") for flag in ours} | named)


def known(path: tuple[str, ...]) -> frozenset[str]:
    found = flags_of(*path)
    assert found is not None
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    assert missing_files(text_of(page)) == []


def test_the_floors_are_those_of_the_list() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = next(block for block in blocks_of(text) if block.startswith(f"{len(FLOORS)}  "))
    found = [re.sub(r"^ *\d+  ", "", line).split("   ")[0] for line in block.splitlines()]
    assert [tuple(line.split()) for line in found] == list(FLOORS)


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs/README.md"
    linked = {one.partition("#")[0] for one, _ in LINK.findall(index.read_text())}
    pages = {page.relative_to(index.parent).as_posix() for page in index.parent.rglob("*.md")}
    assert pages - linked - {"README.md"} == set()


def test_pages_that_programs_name_exist() -> None:
    files = [*(ROOT / "offline").rglob("*.py"), *(ROOT / "offline").rglob("*.html")]
    files += [*(ROOT / "vllm_moe_prune").rglob("*.py"), *(ROOT / "loadtest").rglob("*.py")]
    named = {name for file in files for name in re.findall(r"docs/[\w/-]+\.md", file.read_text())}
    assert named, "the pattern finds nothing"
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("vmprune compress --model M --kep 4", ["compress --kep"]),
        ("vmprune demo run --forces", ["demo run --forces"]),
        ("vmprune compact x", ["vmprune compact"]),
        ("python -m offline.demo.train --out x", ["offline.demo.train"]),
        ("make tests", ["make tests"]),
        ("vmprune compress --recipe r.yaml --no-racing -q", []),
        ("make window WINDOW=0.31.0", []),
    ],
)
def test_what_is_not_there_is_found(line: str, wrong: list[str]) -> None:
    for text in (f"x\n\n```console\n$ {line}\n```\n", f"x `{line}` y", f"x\n\n    {line}\n"):
        found = [entry for words in commands_of(text) for entry in complaints(words)]
        assert found == wrong


def test_a_file_that_is_not_there_is_found() -> None:
    assert missing_files("see `offline/plan.py` and offline/plan/plan.py") == ["offline/plan.py"]
