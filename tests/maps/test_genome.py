"""What makes two genomes the same."""

from __future__ import annotations

import numpy as np
import pytest

from offline.maps.genome import Coefficients, Genome, selected

A, B = (0, 2, 5), (1, 3, 4)


def test_the_order_of_kept_experts_changes_the_numbers_but_not_the_key() -> None:
    sorted_, shuffled = Genome.of_kept([A, B], [8, 8]), Genome.of_kept([(5, 0, 2), B], [8, 8])
    assert sorted_ != shuffled
    assert sorted_.key == shuffled.key
    assert sorted_.key != Genome.of_kept([B, A], [8, 8]).key
    assert sorted_.key != Genome.of_kept([(0, 2, 6), B], [8, 8]).key


def test_equal_numbers_are_equal_genomes() -> None:
    one, two = Genome.of_kept([A], [8]), Genome.of_kept([A], [8])
    assert one == two
    assert hash(one) == hash(two)
    assert len({one, two, Genome.of_kept([A], [9])}) == 2
    assert one != Genome.of_kept([A, A], [8, 8])


def test_continuous_genomes_are_told_apart_by_every_bit() -> None:
    one_hot = Coefficients.one_hot(A, 8)
    noisy = one_hot.experts + np.float32(1e-6) * one_hot.experts
    keys = {
        Genome((Coefficients(experts, router),)).key
        for experts in (one_hot.experts, noisy)
        for router in (one_hot.experts, noisy, one_hot.experts[::-1])
    }
    assert len(keys) == 6


def test_row_order_counts_where_the_matrices_are_not_tied() -> None:
    rows = Coefficients.one_hot(A, 8).experts
    crossed = Genome((Coefficients(rows, rows[::-1]),))
    assert crossed.is_one_hot
    assert not crossed.is_tied
    assert crossed.key != Genome.of_kept([A], [8]).key


def test_minus_zero_is_zero() -> None:
    rows = Coefficients.one_hot(A, 8).experts
    assert Genome((Coefficients(rows, np.where(rows == 0, -0.0, rows)),)).key == (
        Genome.of_kept([A], [8]).key
    )


def test_the_identity_keeps_every_expert_in_place() -> None:
    identity = Genome.identity([4, 6])
    assert identity.rows == (4, 6)
    assert identity.is_one_hot and identity.is_tied
    np.testing.assert_array_equal(identity.groups[1].experts, np.eye(6))


def test_matrices_cannot_be_changed() -> None:
    genome, source = Genome.of_kept([A], [8]), np.eye(3, dtype=np.float32)
    kept = Coefficients(source, source)
    source[0, 0] = 5
    assert kept.experts[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        genome.groups[0].experts[0, 0] = 2


@pytest.mark.parametrize(
    ("matrix", "kept"),
    [
        ([[0, 1, 0], [0, 0, 1]], (1, 2)),
        ([[0, 1, 0], [0, 1, 0]], (1, 1)),
        ([[0, 1, 1], [0, 0, 1]], None),
        ([[0, 0.5, 0.5]], None),
        ([[0, 0, 0]], None),
        ([[-1, 1, 1]], None),
        ([[2, 0, -1]], None),
    ],
)
def test_only_rows_with_a_single_one_select(matrix: object, kept: object) -> None:
    assert selected(np.array(matrix, np.float32)) == kept


def test_the_main_expert_is_the_largest_entry() -> None:
    rows = np.array([[0.9, 0.1, -2.0], [0.2, 0.1, 0.3]], np.float32)
    assert Coefficients(rows, rows[::-1]).main == (0, 2)
