import sys
from pathlib import Path

import pytest
import torch

from offline.demo import dense
from offline.demo.model import make_demo_model
from offline.runs.owned import write_manifest
from tests.command import one_error, run
from vllm_moe_prune.errors import PruneError


def test_existing_output_is_refused_without_force(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    with pytest.raises(PruneError, match="already exists"):
        make_demo_model(out)


def test_without_its_data_it_is_one_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vllm_moe_prune_demo", None)
    status, said = run("demo", "model", "--out", tmp_path / "model", capsys=capsys)
    assert one_error(status, said) == "the data of the demo model (20 MB) are not installed"
    assert "vllm-moe-prune[demo]" in said
    assert list(tmp_path.iterdir()) == []


def test_failure_while_writing_leaves_the_old_output_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (out / "config.json").write_text("old")
    write_manifest(out)

    def full(dtype: torch.dtype) -> dense.Dense:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dense, "load_dense", full)
    with pytest.raises(PruneError, match="no space left on the disk"):
        make_demo_model(out, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (out / "config.json").read_text() == "old"
