"""The page is drawn from records alone, at any time, and needs nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from loadtest.metrics import Record
from loadtest.report import report_command


def records(folder: Path, name: str) -> Path:
    good = {"kind": "chat", "arrivals": (0.1, 0.2), "ended": 0.3, "output_tokens": 2}
    rows = [
        Record.model_validate({**good, "started": 10.0}),
        Record.model_validate({**good, "started": 10.2, "error": "HTTP 503: <script>alert(1)"}),
        Record.model_validate({**good, "started": 10.4, "cut": True}),
    ]
    file = folder / name
    file.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return file


def test_records_of_several_runs_become_one_page(tmp_path: Path) -> None:
    files = [records(tmp_path, "<b>one.jsonl"), records(tmp_path, "two.jsonl")]
    done = CliRunner().invoke(report_command, list(map(str, files)))
    assert done.exit_code == 0, done.output
    page = (tmp_path / "loadtest.html").read_text()
    assert "<td>&lt;b&gt;one</td><td>1</td><td>1</td><td>1</td>" in page
    assert "<b>" not in page.partition("<script>")[0]
    for title in ("Time to first token", "Over time: two"):
        assert title in page
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "src=" not in outside and "http://" not in outside and "https://" not in outside


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["absent.jsonl"], "no request records at absent.jsonl"), (["."], "no comparison at")],
)
def test_what_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(report_command, arguments)
    assert done.exit_code == 1 and message in done.output and done.output.count("\n") == 1
