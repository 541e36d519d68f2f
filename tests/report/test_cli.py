from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from offline.cli.report import report
from tests.report.samples import run_result
from vllm_moe_prune.errors import PruneError


def test_report_is_drawn_again(tmp_path: Path) -> None:
    run_result(num_layers=1).save(tmp_path)
    done = CliRunner().invoke(report, [str(tmp_path)])
    assert done.exit_code == 0
    assert f"{tmp_path / 'report.html'} (4." in done.output


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(report, [str(tmp_path)])
    assert isinstance(done.exception, PruneError)
    assert "vmprune compress" in str(done.exception)


def test_help_has_an_example() -> None:
    assert "vmprune report OUT" in CliRunner().invoke(report, ["--help"]).output


def test_command_is_light_to_import() -> None:
    heavy = "{'plotly', 'jinja2', 'numpy', 'torch'}"
    code = f"import sys, offline.cli.report; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
