"""The EEP authors' coefficient files, real ones where they are at hand and made ones always."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from offline.cli.main import cli
from offline.methods.eep_released import coefficients_map, mixtral_8x7b, read_coefficients
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import RoutingMap

RELEASED = Path(__file__).parents[3] / "shared" / "eep_coefficients"
FILES = sorted(RELEASED.glob("*.pth"))

Table = dict[str, Any]


def grouped(rows: int = 2, experts: int = 8) -> Table:
    """Two groups of two layers, as a released file of four layers would have them."""
    generator = torch.Generator().manual_seed(0)
    keys = ("layers.[0-1]", "others", "transfer.[0-1]", "others_transfer")
    return {key: torch.eye(experts)[:rows] + 0.1 * torch.randn(rows, experts, generator=generator)
            for key in keys}  # fmt: skip


def per_layer(layers: int = 4, rows: int = 2) -> Table:
    """One group per layer, keys interleaved; layer n keeps experts n and n + 1, W_RM swapped."""
    table: Table = {}
    for layer in range(layers):
        last = layer == layers - 1
        matrix = torch.eye(8)[layer : layer + rows]
        table["others" if last else f"layers.{layer}"] = matrix
        table["others_transfer" if last else f"transfer.{layer}"] = matrix.flip(0)
    return table


def saved(table: Any, folder: Path) -> Path:
    torch.save(table, folder / "squad_budget_2.pth")
    return folder / "squad_budget_2.pth"


def test_groups_and_others_cover_all_layers(tmp_path: Path) -> None:
    table = grouped()
    released = read_coefficients(saved(table, tmp_path), num_layers=4)
    assert released.groups == ((0, 1), (2, 3))
    assert (released.num_kept, released.num_experts) == (2, 8)
    for layer, coefficients in released.by_layer().items():
        experts, router = (
            ("layers.[0-1]", "transfer.[0-1]") if layer < 2 else ("others", "others_transfer")
        )
        np.testing.assert_array_equal(coefficients.experts, table[experts].numpy())
        np.testing.assert_array_equal(coefficients.router, table[router].numpy())


def test_the_remainder_of_the_layers_is_in_others(tmp_path: Path) -> None:
    released = read_coefficients(saved(grouped(), tmp_path), num_layers=5)
    assert released.groups == ((0, 1), (2, 3, 4))
    with pytest.raises(PruneError, match="is not for 6 layers: 4 of them would be `others`"):
        read_coefficients(tmp_path / "squad_budget_2.pth", num_layers=6)
    with pytest.raises(PruneError, match="is not for 2 layers: none is left for others"):
        read_coefficients(tmp_path / "squad_budget_2.pth", num_layers=2)
    with pytest.raises(PruneError, match="within the model's 1 layers"):
        read_coefficients(tmp_path / "squad_budget_2.pth", num_layers=1)


def test_one_hot_rows_in_another_order_stay_selections(tmp_path: Path) -> None:
    released = read_coefficients(saved(per_layer(), tmp_path), num_layers=4)
    assert released.groups == ((0,), (1,), (2,), (3,))
    assert all(not coefficients.is_tied for coefficients in released.by_layer().values())


def _without(key: str) -> Callable[[Table], Any]:
    return lambda table: {name: value for name, value in table.items() if name != key}


def _with(**changes: Any) -> Callable[[Table], Any]:
    return lambda table: table | changes


def _poisoned(value: float) -> Callable[[Table], Any]:
    def change(table: Table) -> Table:
        table["others"][1, 3] = value
        return table

    return change


WRONG: list[tuple[Callable[[Table], Any], str]] = [
    (_without("others"), "is not for 4 layers: no matrix for layer 2"),
    (_without("transfer.[0-1]"), "its expert and its router matrices are not of the same layers"),
    (_with(extra=torch.eye(2, 8)), "unknown entry 'extra'"),
    (_with(others=torch.eye(3, 8)), "layers of layers 2-3: shape [3, 8], others have [2, 8]"),
    (_with(others=torch.ones(8)), "shape [8] is not [E', E] with E' <= E"),
    (_with(others=torch.eye(9, 8)), "shape [9, 8] is not [E', E] with E' <= E"),
    (_with(others=torch.ones(2, 8).int()), "others is not a dense matrix of floating-point"),
    (_with(others=torch.eye(2, 8).to_sparse()), "others is not a dense matrix"),
    (_with(others=[1, 2]), "entry 'others' is not a matrix"),
    (_with(**{"layers.1": torch.eye(2, 8)}), "layer 1 is in two groups (layers.1)"),
    (_poisoned(float("nan")), "layers of layers 2-3 has a value that is not finite"),
    (_poisoned(float("inf")), "layers of layers 2-3 has a value that is not finite"),
    (lambda table: list(table.values()), "it holds no table of matrices"),
    (lambda table: {}, "it holds no table of matrices"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[m for _, m in WRONG])
def test_what_is_no_such_file_is_refused_in_one_line(
    change: Callable[[Table], Any], message: str, tmp_path: Path
) -> None:
    file = saved(change(grouped()), tmp_path)
    with pytest.raises(PruneError) as caught:
        read_coefficients(file, num_layers=4)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert str(file) in caught.value.message


class _Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.folder),))


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    for number, write in enumerate((torch.save, lambda o, f: f.write_bytes(pickle.dumps(o)))):
        file = tmp_path / f"{number}.pth"
        write(grouped() | {"others": _Malicious(trap)}, file)
        with pytest.raises(PruneError, match="is no coefficient file"):
            read_coefficients(file, num_layers=4)
    assert not trap.exists()
    pickle.loads((tmp_path / "1.pth").read_bytes())  # it would have, elsewhere
    assert trap.exists()


def test_damaged_and_absent_files_are_refused(tmp_path: Path) -> None:
    file = saved(grouped(), tmp_path)
    (tmp_path / "short.pth").write_bytes(file.read_bytes()[:-100])
    (tmp_path / "text.pth").write_text("layers")
    (tmp_path / "empty.pth").touch()
    for name in ("short", "text", "empty"):
        with pytest.raises(PruneError, match="is no coefficient file"):
            read_coefficients(tmp_path / f"{name}.pth", num_layers=4)
    with pytest.raises(PruneError, match="no coefficient file at"):
        read_coefficients(tmp_path / "absent.pth", num_layers=4)


@pytest.mark.skipif(not FILES, reason="the released files are not here")
@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_every_released_file_becomes_a_map_of_mixtral_8x7b(file: Path, tmp_path: Path) -> None:
    released = read_coefficients(file)
    task, budget = file.stem.split("_budget_")
    per_layer_tasks = ("rte", "record", "drop", "arc-c", "arc-e", "gsm8k", "hellaswag", "obqa",
                       "winogrande")  # fmt: skip
    assert len(released.groups) == (32 if task in per_layer_tasks else 4)
    assert released.num_kept == int(budget)
    assert [layer for group in released.groups for layer in group] == list(range(32))
    routing_map = coefficients_map(released, mixtral_8x7b(released.num_kept))
    assert routing_map.form == ("plain" if task == "arc-e" else "compact")  # arc-e is one-hot
    stored = torch.load(file, weights_only=True)
    first = routing_map.layers[0]
    key = "layers.0" if len(released.groups) == 32 else "layers.[0-7]"
    ours = np.sort(routing_map.expert_matrix(first), axis=0)
    np.testing.assert_array_equal(ours, np.sort(stored[key].numpy(), axis=0))
    last = routing_map.router_matrix(routing_map.layers[31])
    np.testing.assert_array_equal(
        np.sort(last, axis=0), np.sort(stored["others_transfer"].numpy(), axis=0)
    )
    routing_map.save(tmp_path)
    assert RoutingMap.load(tmp_path) == routing_map
    assert routing_map.provenance.settings["sha256"] == released.sha256


def test_import_eep_writes_a_map_that_belongs_to_the_base(tmp_path: Path) -> None:
    base = make_tiny_mixtral(tmp_path / "base", layers=4)
    file, out = saved(grouped(), tmp_path), tmp_path / "map"
    arguments = ["import-eep", str(file), "--model", str(base), "--out", str(out)]
    result = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    facts = json.loads(result.output)
    routing_map = RoutingMap.load(out)
    checkpoint = Checkpoint.open(base)
    routing_map.check_base(checkpoint.fingerprint(), checkpoint.expert_counts())
    assert facts["digest"] == routing_map.digest()
    assert facts["file"]["name"] == "squad_budget_2.pth"
    assert routing_map.provenance.method == "eep-released"
    np.testing.assert_array_equal(
        routing_map.expert_matrix(routing_map.layers[3]), grouped()["others"].numpy()
    )
    with pytest.raises(PruneError, match="already exists"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)
    again = CliRunner().invoke(cli, [*arguments, "--force"], catch_exceptions=False)
    assert again.output.splitlines()[-1] == f"written to {out}"


def test_import_eep_refuses_another_base_and_writes_nothing(tmp_path: Path) -> None:
    base = make_tiny_mixtral(tmp_path / "base", layers=4, experts=4)
    file, out = saved(grouped(), tmp_path), tmp_path / "map"
    arguments = ["import-eep", str(file), "--model", str(base), "--out", str(out)]
    with pytest.raises(PruneError, match="is for 8 experts per layer, the model has 4"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert not out.exists()


def test_a_map_without_its_base_needs_permission_to_be_applied(tmp_path: Path) -> None:
    table = {key: torch.eye(8)[:2] for key in per_layer(32)}
    file, out = saved(table, tmp_path), tmp_path / "map"
    arguments = ["import-eep", str(file), "--out", str(out)]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "--allow-other-base" in result.output
    assert RoutingMap.load(out).base.name == "Mixtral-8x7B"
