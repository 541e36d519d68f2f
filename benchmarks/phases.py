"""How much of a search should prune, before merging begins: on random MoE networks, in numpy.

The networks and their items are of tests/maps/landscape.py: a search sees 200 items, 1,000 others
judge what it found. Prints the accuracy with each share, and, as its last line, that of `fast` as
it is (0.85) by that of `paper` at as many candidates.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import click

from offline.methods import eep
from offline.methods.eep_settings import PRESETS, EepSettings, settings_of

_LAYERS, _TOP_K = 4, 2
Found = list[tuple[float, float]]  # of each network: accuracy on the search items, on others


def search(seed: int, keep: int, settings: EepSettings) -> tuple[float, float]:
    """Return the accuracy of the best map that a search finds, on its items and on others."""
    from tests.maps.landscape import Landscape, space_of

    network, space = Landscape(seed, layers=_LAYERS), space_of(_LAYERS, keep=keep, top_k=_TOP_K)
    groups = space.groups(settings.num_groups)
    *_, population = eep.search(
        space, settings, lambda genomes, _: network.assess(genomes, groups), random.Random(seed)
    )
    (best,) = eep.best(population)
    return best.fitness, network.accuracy(best.genome, groups, unseen=True)


def variants(candidates: int, shares: Sequence[float]) -> dict[str, EepSettings]:
    """Return the presets at so many candidates, and `fast` with other shares that prune."""
    own: dict[str, Any] = {"num_evaluations": candidates, "num_groups": _LAYERS}
    found: dict[str, EepSettings] = {name: settings_of(name, **own) for name in PRESETS}
    for share in shares:
        own["phases"] = "both" if share < 1 else "prune"
        own["prune_until"] = round(share * candidates)
        found[f"fast, {share:.0%} pruning"] = settings_of("fast", **own)
    return found


def compared(found: Found, base: Found) -> dict[str, Any]:
    """Return means, and that of the differences to ``base`` with its standard error."""
    rows: dict[str, Any] = {"networks": len(found)}
    for name, place in (("search", 0), ("unseen", 1)):
        differences = [one[place] - other[place] for one, other in zip(found, base, strict=True)]
        rows[name] = round(fmean(one[place] for one in found), 4)
        rows[f"{name}_more"] = round(fmean(differences), 4)
        rows[f"{name}_error"] = round(stdev(differences) / len(differences) ** 0.5, 4)
    return rows


@click.command()
@click.option("--candidates", default=160, help="of each search")
@click.option("--networks", default=40, type=click.IntRange(2), help="random networks")
@click.option("--keeps", default="2,4", help="of 8 experts in each layer")
@click.option("--shares", default="0.4,0.7,1", help="of the candidates, before merging begins")
def main(candidates: int, networks: int, keeps: str, shares: str) -> None:
    """Compare shares of pruning; all differences are to `paper`."""
    detail: dict[str, Any] = {}
    settings = variants(candidates, [float(share) for share in shares.split(",")])
    for keep in map(int, keeps.split(",")):
        runs: dict[str, Found] = {}
        for name, one in settings.items():
            runs[name] = [search(200 + seed, keep, one) for seed in range(networks)]
            row = detail[f"{keep} of 8, {name}"] = compared(runs[name], runs["paper"])
            print(f"{keep} of 8, {name}: {row}", flush=True)
    ratios = [detail[f"{k} of 8, fast"]["unseen"] / detail[f"{k} of 8, paper"]["unseen"]
              for k in keeps.split(",")]  # fmt: skip
    print(
        json.dumps(
            {
                "name": "phases",
                "value": round(fmean(ratios), 4),
                "unit": "accuracy on unseen items, preset fast by preset paper",
                "detail": {"candidates": candidates, **detail},
            }
        )
    )


if __name__ == "__main__":
    main()
