from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offline.engines.local.packing import ROW_TOKENS, build, group, pack

tokens = st.lists(st.integers(1, 50), min_size=1, max_size=12)
pairs = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pairs)
def test_each_token_sees_its_own_context_and_continuation_only(
    pairs: list[tuple[list[int], list[int]]],
) -> None:
    """Follow the mask from every place that predicts: it must see exactly the plain sequence."""
    predicted: dict[int, list[tuple[list[int], int]]] = {}
    for rows in pack(group(pairs, max_length=1000), tokens_per_batch=64):
        batch = build(rows, torch.device("cpu"))
        ids, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
        length = batch.input_ids.shape[1]
        at = 0
        for place, count in zip(batch.places, batch.lengths, strict=True):
            for source, target in zip(
                batch.source[at : at + count], batch.target[at : at + count], strict=True
            ):
                row, column = divmod(int(batch.keep[source]), length)
                own = batch.mask[row, : column + 1]  # of a row that is one sequence: not padding
                if batch.mask.dim() == 4:
                    own = batch.mask[row, 0, column]
                seen = own.nonzero().flatten() + row * length
                assert positions[seen].tolist() == list(range(len(seen)))
                assert batch.real[seen].all()
                predicted.setdefault(place, []).append((ids[seen].tolist(), int(target)))
            at += count
    for place, (context, continuation) in enumerate(pairs):
        whole = context + continuation
        start = len(context)
        assert predicted[place] == [(whole[:i], whole[i]) for i in range(start, len(whole))]


def test_context_is_computed_once_and_rows_are_filled() -> None:
    pairs = [([question] * 20, [choice] * 5) for question in range(1, 31) for choice in range(4)]
    batches = pack(group(pairs, max_length=1000), tokens_per_batch=512)
    sizes = [[sum(q.num_tokens for q in row) for row in batch] for batch in batches]
    assert sum(map(sum, sizes)) == 30 * (20 + 4 * 4)
    assert all(size <= ROW_TOKENS for batch in sizes for size in batch)
    assert all(len(batch) * max(batch) <= 512 for batch in sizes)


def test_long_context_loses_its_beginning() -> None:
    (question,) = group([(list(range(1, 101)), [7, 8, 9])], max_length=50)
    assert question.context == tuple(range(53, 101))
    assert question.num_tokens == 50
