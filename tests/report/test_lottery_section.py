"""The lottery's part of the report, from a record made by hand."""

from __future__ import annotations

import pytest

from offline.report import lottery as section
from offline.report.render import render
from offline.results.lottery import (
    LayerLoad,
    LotteryRecord,
    Measured,
    RoundFinetune,
    RoundRecord,
)
from tests.report.page import Page
from tests.report.samples import run_result
from vllm_moe_prune.tuning import Tuning

TUNING = Tuning(trainable="all", parameters=10, steps=3, tokens=76543210, learning_rate=1e-4)


def measured(loss: float, *tokens: int) -> Measured:
    load = tuple(LayerLoad.of(n, range(len(tokens)), tokens) for n in range(3))
    return Measured(losses={"code": loss, "prose": loss + 1}, load=load)


def record(*, tuned: bool) -> LotteryRecord:
    trained = RoundFinetune(
        tuning=TUNING, first_loss=3, last_loss=2, peak_bytes=1, trained_bytes=40
    )
    one = RoundRecord(
        number=1,
        criterion="min-ean",
        kept={0: (0, 1)},
        map_digest="sha256:0",
        dropped=measured(2.0, 9, 1),
        trained=trained if tuned else None,
        tuned=measured(1.5, 6, 4) if tuned else None,
        seconds={"drop": 1.0},
    )
    return LotteryRecord(base=measured(1.0, 3, 3, 4), rounds=(one,), result=one.result)


@pytest.mark.parametrize("tuned", [True, False])
def test_the_page_shows_rounds_and_offers_a_map_only_where_it_makes_the_model(tuned: bool) -> None:
    result = run_result().model_copy(update={"lottery": record(tuned=tuned), "method": "lottery"})
    text = render(result)
    page = Page(text)
    assert {"rounds", "load-balance", "load-0", "load-2"} <= set(page.figures)
    rounds = page.table("Held-out perplexity by round; domains at the end of it")
    assert rounds.column("round") == ["base", "1", "as stored"]
    assert rounds.row("1")["tokens trained on"] == ("76,543,210" if tuned else "")
    assert rounds.column("perplexity")[:2] == ["4.48", "12.18"]  # e^1.5, e^2.5
    assert ("routing_map" in text.split('id="h-use"')[1].split("</section>")[0]) != tuned


def test_the_tables_say_what_was_measured() -> None:
    rows = section.rounds_table(record(tuned=True)).rows
    assert rows[0][:3] == ("base", "3", "4.48")  # e^1.5
    assert rows[1][:5] == ("1", "2", "12.18", "7.39", "76,543,210")  # e^2.5, e^2
    assert rows[1][5:7] == ("0.80", "0.20")  # of loads 9:1 and 6:4
    loads = section.load_table(record(tuned=True)).rows
    assert loads[0] == ("0", "0.14", "1.20", "0.80", "1.80", "0.20", "1.20")
