"""What `benchmarks.evidence` compares: each method is a few commands of `vmprune`, as data."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from offline.criteria.registry import CRITERIA
from offline.methods.merging import MergeKind

SWEEP, RANDOM = "sweep's choice", "random"
_PLAN = "plan --scores {scores} --out {out}"
_COMPRESS = (
    "compress --model {model} --task {tasks} --seed {seed} --compare none --test-items 8 "
    "--out {out}"
)
_SEARCH = (
    "--search-items {search_items} --selection-items {search_items} --evaluations {evaluations}"
)


@dataclass(frozen=True, slots=True)
class Method:
    """A way to make a smaller model.

    In ``commands`` the names of `benchmarks.evidence` stand in braces: ``model``, ``scores``,
    ``tasks``, ``criteria`` (that are compared), ``text`` (to learn from), ``ratio``, ``keep``
    (experts of a layer), ``total`` (of all), ``floor``, ``search_items``, ``evaluations``,
    ``seed``. ``{out}`` is what is measured: a routing map or a checkpoint that holds one, or the
    folder of a sweep. What begins with ``{shared}`` serves all shares of one seed.
    """

    name: str
    commands: tuple[str, ...]
    needs_gradients: bool = False

    def words(self, told: Mapping[str, object], out: Path) -> Iterator[tuple[list[str], Path]]:
        """Yield each command's words, and the folder that it writes."""
        quoted = {name: shlex.quote(str(value)) for name, value in told.items()}
        for command in self.commands:
            words = shlex.split(command.format(**quoted, out=shlex.quote(str(out))))
            yield words, Path(words[words.index("--out") + 1])


METHODS: tuple[Method, ...] = (
    Method(
        RANDOM, (f"{_COMPRESS} --keep {{keep}} --method random --search-items 1 --random-maps 1",)
    ),
    *(
        Method(name, (f"{_PLAN} --criterion {name} --keep {{keep}}",), one.needs_gradients)
        for name, one in CRITERIA.items()
    ),
    *(
        Method(f"merged by {kind}", (f"{_PLAN} --merge {kind} --keep {{keep}}",))
        for kind in get_args(MergeKind)
    ),
    *(
        Method(
            f"{word}, budget by importance",
            (f"{_PLAN} --criterion {word} --budget {{total}} --floor {{floor}}",),
        )
        for word in ("min-ean", "min-reap")
    ),
    *(
        Method(
            f"{word}, budget by sensitivity",
            (
                "sensitivity --model {model} --scores {scores} --text {text} "
                f"--criterion {word} --out {{shared}}-sensitivity-{word}",
                f"{_PLAN} --criterion {word} --budget {{total}} --floor {{floor}} "
                f"--sensitivity {{shared}}-sensitivity-{word}",
            ),
        )
        for word in ("min-ean", "min-reap")
    ),
    *(
        Method(
            f"min-ean, {trained} distilled",
            (
                "plan --scores {scores} --criterion min-ean --keep {keep} --out {out}-map",
                "build --model {model} --map {out}-map --out {out}-pruned",
                f"recover --model {{out}}-pruned --base {{model}} --distill {trained} "
                "--data {text} --micro-batch 1 --out {out}",
            ),
        )
        for trained in ("router", "all")
    ),
    *(
        Method(
            f"{word}, substituted", (f"{_PLAN} --criterion {word} --keep {{keep}} --substitute",)
        )
        for word in ("min-ean", "min-euf")
    ),
    Method("EEP", (f"{_COMPRESS} --keep {{keep}} --method eep {_SEARCH}",)),
    Method(
        "EEP, budget",
        (f"{_COMPRESS} --budget {{total}} --floor {{floor}} --method eep {_SEARCH}",),
    ),
    Method(
        SWEEP,
        (
            "sweep --model {model} --scores {scores} --task {tasks} --ratios {ratio} --seed {seed} "
            "--criteria {criteria} --fates dropped,substituted --engine transformers "
            "--merges output-similarity,router-similarity --speed-rounds 0 "
            "--search-items {search_items} --search {evaluations} --test-items 16 --finalists 1 "
            "--out {out}",
        ),
    ),
)
