"""The probes that are there without a file: 2,000 of each of five kinds, made from tables.

Those of one kind share their forms, so they are less different from each other than users'
questions are: a file of one's own prompts shows more. They are in an order in which every first
few hold all kinds, forms and subjects.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from offline.check.probe import Probe
from offline.check.prompt_tables import CHATS, CODE, CODE_FORMS, PLACES, PROSE, SUBJECTS, WHO
from offline.results.check import Kind

PER_KIND = 2000


def _tool(name: str, says: str, **fields: str) -> dict[str, Any]:
    """Return a tool; a field's text is its type and what it is."""
    made = {}
    for field, text in fields.items():
        kind, _, what = text.partition(": ")
        made[field] = {"type": kind, "description": what}
    parameters = {"type": "object", "properties": made, "required": list(fields)}
    return {
        "type": "function",
        "function": {"name": name, "description": says, "parameters": parameters},
    }


_TOOLS = (
    _tool("get_weather", "The weather of a city", city="string: its name", day="string: a date"),
    _tool(
        "send_message",
        "Send a message to somebody",
        to="string: who gets it",
        text="string: what it says",
    ),
    _tool(
        "book_table",
        "Book a table in a restaurant",
        city="string: where",
        people="integer: how many",
        time="string: such as 19:30",
    ),
    _tool(
        "convert_currency",
        "Convert an amount of money",
        amount="number: how much",
        source="string: code of a currency",
        target="string: code of a currency",
    ),
    _tool(
        "create_event",
        "Put something into the calendar",
        title="string: what",
        date="string: YYYY-MM-DD",
        minutes="integer: how long",
    ),
    _tool("search_flights", "Find flights", start="string: a city", end="string: a city"),
    _tool("set_timer", "Set a timer", minutes="integer: until it rings", label="string: its name"),
    _tool("run_query", "Run SQL on the table `orders`", sql="string: one statement"),
)


def _chats(index: int, draw: random.Random) -> Probe:
    subject = SUBJECTS[index % len(SUBJECTS)]
    asked = {"role": "user", "content": CHATS[index // len(SUBJECTS)].format(subject)}
    if draw.random() < 2 / 3:
        return Probe(kind="chats", messages=(asked,))
    before = (
        {"role": "user", "content": f"Hello! Today I would like to talk about {subject}."},
        {
            "role": "assistant",
            "content": f"With pleasure. What about {subject}?",
        },
    )
    return Probe(kind="chats", messages=(*before, asked))


def _prose(index: int, draw: random.Random) -> Probe:
    subject = SUBJECTS[index % len(SUBJECTS)]
    return Probe(kind="prose", prompt=PROSE[index // len(SUBJECTS)].format(subject))


def _code(index: int, draw: random.Random) -> Probe:
    form = CODE_FORMS[index // len(CODE)]
    return _asked("code", form.format(CODE[index % len(CODE)]))


def _tools(index: int, draw: random.Random) -> Probe:
    place, other = draw.sample(PLACES, 2)
    who, number, day = draw.choice(WHO), draw.randint(2, 90), draw.randint(1, 28)
    date = f"2027-{draw.randint(1, 12):02}-{day:02}"
    asked = (
        f"What will the weather be in {place} on {date}?",
        f"Tell {who} that I am in {place} until {date} and that room {number} is free.",
        f"Book a table for {2 + number % 9} in {place} at {17 + number % 5}:30.",
        f"How much are {number * 10} euros in US dollars?",
        f"Put 'meeting with {who}' into my calendar on {date}, for {number} minutes.",
        f"Find me a flight from {place} to {other}.",
        f"Set a timer of {number} minutes for the soup that {who} likes.",
        f"How many rows of `orders` have city = '{place}' and amount > {number}?",
    )[index % len(_TOOLS)]
    offered = [_TOOLS[index % len(_TOOLS)]]
    offered += draw.sample([tool for tool in _TOOLS if tool not in offered], draw.randint(0, 3))
    draw.shuffle(offered)
    return Probe(kind="tools", messages=({"role": "user", "content": asked},), tools=tuple(offered))


def _thinking(index: int, draw: random.Random) -> Probe:
    who, other = draw.sample(WHO, 2)
    a, b, c = draw.randint(12, 98), draw.randint(3, 19), draw.randint(2, 9)
    place = draw.choice(PLACES)
    return _asked(
        "thinking",
        (
            f"{who} has {a * c} coins and gives {b} to each of {c} friends. {other} has {a} more "
            f"than {who} then has. How many have they together?",
            f"A train to {place} leaves at {6 + c}:{a % 60:02} and takes {b * 7} minutes. It stops "
            f"{c} times for {b % 4 + 1} minutes. When does it arrive?",
            f"A tank holds {a * 10} litres. A pump fills {b} litres a minute, a leak loses {c}. "
            f"It starts with {a + b} litres. After how many whole minutes is it full?",
            f"{who} is {c} times as old as {other} was {b} years ago. {other} is {b + a % 20 + 1} "
            f"now. How old is {who}?",
            f"How many of the numbers from {b} to {a * c} are multiples of {c} but not of {c + 1}?",
            f"A shop sells {a} pens at {c} euros and {b} books at {a % 13 + 5} euros, then "
            f"takes {b} percent off the whole. What is paid? Show your reasoning.",
            f"{who} reads {b} pages on the first day and {c} more each day than before. "
            f"On which day have {a * c} pages been read?",
            f"What is the remainder of {a} to the power of {b} when it is divided by {c + 10}?",
        )[index % 8],
    )


def _asked(kind: Kind, text: str) -> Probe:
    return Probe(kind=kind, messages=({"role": "user", "content": text},))


_MADE: dict[Kind, Callable[[int, random.Random], Probe]] = {
    "chats": _chats,
    "prose": _prose,
    "code": _code,
    "tools": _tools,
    "thinking": _thinking,
}


def built_in(count: int) -> tuple[Probe, ...]:
    """Return the first ``count`` probes: the same of every larger number."""
    orders = {kind: _one_kind(kind) for kind in _MADE}
    rounds = (next(orders[kind]) for _ in range(PER_KIND) for kind in _MADE)
    return tuple(islice(rounds, count))


def _one_kind(kind: Kind) -> Iterator[Probe]:
    """Yield one kind's probes, no two of them equal, in an order that is always the same."""
    seen: set[str] = set()
    for index in random.Random(kind).sample(range(PER_KIND), PER_KIND):
        draw = random.Random(f"{kind} {index}")
        probe = _MADE[kind](index, draw)
        while probe.digest in seen:
            probe = _MADE[kind](index, draw)
        seen.add(probe.digest)
        yield probe
