"""`report.html`: everything about a run on one page that needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offline.report import (
    analysis_figures,
    analysis_tables,
    answers,
    commands,
    figures,
    heatmap,
    lottery,
    tables,
    words,
)
from offline.report.drawing import Figure
from offline.report.inputs import (
    CHECK_FILE,
    SERVING_FILE,
    Check,
    Ratio,
    Serving,
    parse,
    read_optional,
)
from offline.report.judged import Judged, gates_table, text_table
from offline.report.template import fill
from offline.results.analysis import ANALYSIS_FILE, Analysis
from offline.results.compression import RunResult
from offline.runs.owned import check_page
from vllm_moe_prune.provenance import write_atomic

REPORT_FILE = "report.html"


def write_report(folder: Path) -> Path:
    """Draw the report of a run from the files beside its checkpoint.

    :returns: the page, ``folder/report.html``
    :raises PruneError: if the result is missing, a file beside it is damaged, or another page is
        there
    """
    result = RunResult.load(folder)
    page = render(
        result,
        serving=read_optional(folder / SERVING_FILE),
        check=read_optional(folder / CHECK_FILE),
        analysis=read_optional(folder / ANALYSIS_FILE),
        judged=Judged.beside(folder),
    )
    check_page(folder / REPORT_FILE)
    write_atomic(folder / REPORT_FILE, page)
    return folder / REPORT_FILE


def render(
    result: RunResult,
    *,
    serving: Mapping[str, Any] | None = None,
    check: Mapping[str, Any] | None = None,
    analysis: Mapping[str, Any] | None = None,
    judged: Judged | None = None,
) -> str:
    """Return the page.

    :param serving: what `python -m loadtest.compare` wrote as compare.json
    :param check: what `vmprune check` wrote as check.json
    :param analysis: analysis.json, of a run that had scores or of `vmprune analyze`
    :param judged: what gates, plain text and the probes of `vmprune check` said
    :raises PruneError: if one of these does not have the fields that are shown
    """
    served = parse(Serving, serving, SERVING_FILE)
    checked = parse(Check, check, CHECK_FILE)
    used = parse(Analysis, analysis, ANALYSIS_FILE)
    judged = judged or Judged()
    return fill(
        "report.html",
        provenance=result.provenance,
        run=result,
        outcome=outcome(result, served),
        cards=key_figures(result, served, judged),
        judged=judged,
        answers=answers,
        gates_table=gates_table,
        text_table=text_table,
        figures=_figures(result, served) | (analysis_figures.figures_of(used) if used else {}),
        analysis=used,
        analysis_tables=analysis_tables,
        tables=tables,
        lottery=lottery,
        tuned=lottery.is_tuned(result.lottery),
        commands=commands,
        words=words,
        serving=served,
        check=checked,
        kept_share=tables.kept_share(list(result.layers)),
    )


def outcome(result: RunResult, serving: Serving | None) -> str:
    """Say in one sentence what the run has achieved."""
    base, pruned = result.base_size, result.pruned_size
    said = (
        f"Keeping {pruned.experts} of {base.experts} experts takes {result.model} "
        f"from {words.gib(base.num_bytes)} to {words.gib(pruned.num_bytes)} "
        f"({words.change(base.num_bytes, pruned.num_bytes)})"
    )
    full, chosen = result.quality_of("base"), result.quality_of(result.method)
    if full and chosen:
        mean = f" (mean of {chosen.maps} random maps)" if chosen.maps > 1 else ""
        said += (
            f"; accuracy on {chosen.items} held-out items of {result.task} goes from "
            f"{words.percent(full.accuracy)} to {words.percent(chosen.accuracy)}{mean}"
        )
    speed = serving and serving.ratio("output_tokens_per_second", serving.usual_users)
    if speed:
        said += f"; it serves {speed.median:.2f} times the output tokens per second"
        said += f" at {_users(speed)}"
    return said + "."


def key_figures(
    result: RunResult, serving: Serving | None, judged: Judged
) -> list[tuple[str, str, str]]:
    """Return name, value and small print of the figures on top of the page."""
    base, pruned = result.base_size, result.pruned_size
    cards = [
        ("Experts", f"{pruned.experts} of {base.experts}", _per_layer(result)),
        (
            "On disk",
            words.gib(pruned.num_bytes),
            f"base {words.gib(base.num_bytes)}, {words.change(base.num_bytes, pruned.num_bytes)}",
        ),
    ]
    for variant in dict.fromkeys((result.method, *words.VARIANTS)):
        q = result.quality_of(variant)
        if q is not None:
            mean = f", mean of {q.maps} maps" if q.maps > 1 else ""
            name = f"Accuracy, {words.variant(variant)}"
            cards.append((name, words.percent(q.accuracy), words.interval(q.low, q.high) + mean))
    cards += judged.cards
    for metric in ("output_tokens_per_second", "ttft_ms_p50", "itl_ms_p50"):
        ratio = serving and serving.ratio(metric, serving.usual_users)
        if ratio:
            said = tables.verdict(ratio)
            small = f"pruned / base at {_users(ratio)}" + (f": {said}" if said else "")
            cards.append((words.METRICS[metric][0].split(", ms")[0], f"x{ratio.median:.2f}", small))
    return cards


def _users(ratio: Ratio) -> str:
    return f"{ratio.users} user" + ("" if ratio.users == 1 else "s")


def _per_layer(result: RunResult) -> str:
    kept = sorted({layer.num_kept for layer in result.layers})
    sizes = sorted({layer.num_experts for layer in result.layers})
    top_k = sorted({layer.top_k for layer in result.layers})
    counts = ["/".join(map(str, values)) for values in (kept, sizes, top_k)]
    return f"{counts[0]} of {counts[1]} per layer, top-{counts[2]}, " + (
        f"{len(result.layers)} layers"
    )


def _figures(result: RunResult, serving: Serving | None) -> dict[str, Figure]:
    drawn = [heatmap.heat_map(result)]
    if result.lottery is not None:
        drawn += lottery.figures_of(result.lottery).values()
    if result.search:
        drawn.append(figures.search_progress(result))
    if any(q.split == "test" for q in result.quality):
        drawn.append(figures.quality_bars(result))
    ratios = serving and figures.serving_ratios(serving)
    if ratios:
        drawn.append(ratios)
    return {figure.name: figure for figure in drawn}
