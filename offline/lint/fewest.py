"""`fewest`: a choice for every layer such that the layers differ as little as possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

Choices = Mapping[int, Sequence[int]]  # decoder layer -> numbers of experts that it may keep


def fewest(counts: Mapping[int, int], choices: Choices, budget: int | None) -> dict[int, int]:
    """Choose a number for every layer: as few different ones as possible in all.

    Of choices with equally many the nearest to ``counts`` in sum is taken, then the larger.

    :param counts: decoder layer -> the number before
    :param choices: decoder layer -> at most two numbers
    :param budget: the most that all layers may keep together
    :returns: decoder layer -> the number; nothing if the budget holds none
    """
    forced = {several[0] for several in choices.values() if len(several) == 1}
    free = sorted({number for several in choices.values() for number in several} - forced)
    for size in range(len(free) + 1):
        found = []
        for more in combinations(free, size):
            allowed = forced.union(more)
            left = {
                layer: [number for number in several if number in allowed]
                for layer, several in choices.items()
            }
            if all(left.values()) and (chosen := _nearest(counts, left, budget)):
                away = sum(abs(number - counts[layer]) for layer, number in chosen.items())
                found.append((away, -sum(chosen.values()), chosen))
        if found:
            return min(found, key=lambda one: one[:2])[2]
    return {}


def _nearest(counts: Mapping[int, int], choices: Choices, budget: int | None) -> dict[int, int]:
    """Take the nearest, of two the higher; down again where that costs least, for the budget."""
    chosen = {
        layer: min(several, key=lambda n: (abs(n - counts[layer]), -n))
        for layer, several in choices.items()
    }
    if budget is None:
        return chosen

    def cost(layer: int) -> int:
        return abs(min(choices[layer]) - counts[layer]) - abs(chosen[layer] - counts[layer])

    lower = sorted((n for n in chosen if chosen[n] > min(choices[n])), key=lambda n: (cost(n), n))
    for layer in lower:
        if sum(chosen.values()) <= budget:
            break
        chosen[layer] = min(choices[layer])
    return chosen if sum(chosen.values()) <= budget else {}
