"""Pages of results in which every text is hostile, by a parser and in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pydantic import BaseModel, ValidationError

from loadtest.metrics import Record
from loadtest.report import PAGE, write_comparison, write_records
from loadtest.results import CompareResult
from offline.report import analysis_page, recovery_page
from offline.report.judged import Judged
from offline.report.render import render
from tests.loadtest.test_compare import life
from tests.report.judgements import answer_check, gates, text_quality
from tests.report.page import Page
from tests.report.samples import check_json, compare_json, run_result
from tests.report.test_leftovers import PAGES as ALL_PAGES
from tests.report.test_leftovers import analysis, lottery
from tests.results.test_recovery import FULL

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), "")
RUN = "document.documentElement.setAttribute('data-ran', 1)"
HOSTILE = (
    f'"\'--></title></script><script>{RUN}</script><img src=x onerror="{RUN}">'
    f'<svg onload="{RUN}"><a href="javascript:{RUN}">a</a>{{{{ 7*7 }}}}<b onclick=x>b</b>'
)
Model = TypeVar("Model", bound=BaseModel)


def hostile(model: Model) -> Model:
    """Return a result in which every text that may be any text is hostile."""
    kind, tree = type(model), model.model_dump(mode="json")
    for node, key in list(texts(tree)):
        before, node[key] = node[key], HOSTILE
        try:
            kind.model_validate(tree)
        except ValidationError:
            node[key] = before
    return kind.model_validate(tree)


def texts(node: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, str):
            yield node, key
        elif isinstance(value, dict | list):
            yield from texts(value)


def everywhere(tree: Any) -> Any:
    """Return what another tool wrote with hostile texts, where no name of ours stands."""
    for node, key in list(texts(tree)):
        if key not in ("side", "metric"):
            node[key] = HOSTILE
    return tree


def compared(folder: Path) -> str:
    lives = (life("base", 0, 100), life("candidate", 0, 170))
    result = CompareResult(
        base="a", candidate="b", settings={"users": [8]}, server_arguments=("--x",),
        created="2026-01-01", lifetimes=lives, ratios=(), machine={"cpu": "c"},
        versions={"vllm": "0"}, verdict=("it failed",),
    )  # fmt: skip
    (folder / "compare.json").write_text(hostile(result).model_dump_json())
    for side in ("base", "candidate"):
        place = folder / "rounds" / f"1-{side}"
        place.mkdir(parents=True)
        records(place / "users-8.jsonl")
    write_comparison(folder)
    return (folder / PAGE).read_text()


def recorded(folder: Path) -> str:
    files = [records(folder / f"{name}.jsonl") for name in ("<b onclick=x>", "two")]
    write_records(files, folder / PAGE)
    return (folder / PAGE).read_text()


def records(file: Path) -> Path:
    good = {"kind": "chat", "arrivals": (0.1, 0.2), "ended": 0.3, "output_tokens": 2}
    rows = [Record.model_validate({**good, "started": n, "error": n % 2 * HOSTILE}) for n in (1, 2)]
    file.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return file


JUDGED = Judged(hostile(gates()), hostile(answer_check()), hostile(text_quality()))
PAGES: dict[str, Callable[[Path], str]] = {
    "report": lambda _: render(
        hostile(run_result(num_layers=2)),
        serving=everywhere(compare_json((1,))),
        check=everywhere(check_json()),
        judged=JUDGED,
    ),
    "lottery": lambda _: render(hostile(lottery(tuned=True))),
    "analysis": lambda _: analysis_page.render(hostile(analysis())),
    "recovery": lambda _: recovery_page.render(hostile(FULL), JUDGED),
    "a comparison": compared,
    "records": recorded,
}


@pytest.mark.parametrize("name", PAGES)
def test_hostile_texts_are_text_and_nothing_else(name: str, tmp_path: Path) -> None:
    page = Page(PAGES[name](tmp_path))
    assert page.open == []
    assert [a for tag, a in page.tags if tag in ("img", "svg", "b", "iframe", "object")] == []
    attributes = [(key, value or "") for _, a in page.tags for key, value in a.items()]
    assert not [key for key, _ in attributes if key.startswith("on")]
    assert not [value for _, value in attributes if value.lower().startswith("javascript:")]
    assert page.loads == []
    policy = [a["content"] for a in page.named("meta") if a.get("http-equiv")]
    assert str(policy[0]).startswith("default-src 'none'")
    assert "onclick=x" in page.text  # it is shown


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_nothing_of_them_runs_in_a_browser(tmp_path: Path) -> None:
    for name, make in PAGES.items():
        (tmp_path / name).mkdir()
        shown = opened(make(tmp_path / name), tmp_path)
        assert "data-ran" not in shown.partition(">")[0] + shown.partition("<html")[2][:200], name
        assert "plot-container" in shown, name  # its own scripts did run


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_the_browser_would_run_them(tmp_path: Path) -> None:
    assert 'data-ran="1"' in opened(f"<html><body>{HOSTILE}</body></html>", tmp_path)


WIDTHS = """<script>addEventListener("load", () => {
  const page = document.documentElement;
  page.setAttribute("data-widths", [page.scrollWidth, innerWidth]);
});</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_no_page_is_wider_than_a_narrow_window(tmp_path: Path) -> None:
    """What is wide scrolls by itself; the smallest window of a browser without a screen."""
    for name, make in ALL_PAGES.items():
        shown = opened(make().replace("</body>", WIDTHS), tmp_path, "--window-size=390,844")
        found = re.search(r'data-widths="(\d+),(\d+)"', shown)
        assert found is not None, name
        assert int(found[1]) <= int(found[2]) <= 600, name


def opened(page: str, folder: Path, *more: str) -> str:
    """Return what is in a page after a browser has shown it."""
    (folder / "page.html").write_text(page)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", *more]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [*command, (folder / "page.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    return done.stdout
