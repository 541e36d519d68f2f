"""Plain text that gates ask for: read by the base and by what a run chose, in the run's engine."""

from __future__ import annotations

import logging

from offline.compress.run import Run
from offline.fitness.documents import TextAsked, parse_texts
from offline.gates.gates import Gates
from offline.results.text_quality import TEXT_QUALITY_FILE, TextQuality
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

_LOG = logging.getLogger(__name__)


def text_of(gates: Gates, seed: int) -> TextAsked | None:
    """Return what text the gates want read; looks at the beginning of each source.

    :raises PruneError: if one is no source
    """
    if not gates.needs_text:
        return None
    assert gates.text is not None
    parts = parse_texts("text", gates.text)
    compared = frozenset(part.name for part in parts) if gates.needs_agreement else frozenset()
    return TextAsked(parts, compared, seed=seed)


def text_beside(run: Run, chosen: RoutingMap, asked: TextAsked) -> dict[str, str]:
    """Return the file that says what the chosen map makes of text; none where replicas measure."""
    from offline.fitness.text_quality import ReadingEngine, TextBench

    engine = run.engines[0]
    if not isinstance(engine, ReadingEngine):
        _LOG.warning("replicas read no text: use vmprune eval --perplexity --map for the gates")
        return {}
    bench = TextBench(engine, asked)
    run.reporter.stage("reading text", 1)
    found = TextQuality(
        model=run.base.name,
        base=run.base.name,
        domains=bench.measure(chosen),
        provenance=Provenance.now(
            run.recipe.method.name,
            settings={"length": asked.length, "text": [part.source for part in asked.parts]},
            seed=asked.seed,
            data=tuple(domain.identity for domain in bench.domains),
        ),
    )
    return {TEXT_QUALITY_FILE: found.to_json()}
