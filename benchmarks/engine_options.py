"""The options of benchmarks whose engines step in turn: the model's shape, the work, and how."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import click

from benchmarks.dummy_model import Shape
from benchmarks.stepping import Work

_SHAPE = Shape()
_OPTIONS = (
    click.option("--users", default=8, type=click.IntRange(1, 15)),
    click.option("--prompt-tokens", default=16, help="with the answer at most 128"),
    click.option("--output-tokens", default=32),
    click.option("--threads", default=1, help="that the engines compute with"),
    click.option("--layers", default=_SHAPE.layers),
    click.option("--hidden", default=_SHAPE.hidden, help="64 for each head"),
    click.option("--intermediate", default=_SHAPE.intermediate),
    click.option("--eager/--compiled", default=True, help="without or with torch.compile"),
)


@dataclass(frozen=True, slots=True)
class Setup:
    """What the options say."""

    shape: Shape
    work: Work
    threads: int
    eager: bool

    def detail(self) -> dict[str, Any]:
        """As reports have it."""
        shown = {"shape": asdict(self.shape), "eager": self.eager, "threads": self.threads}
        return shown | asdict(self.work)


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Declare them for a command, which is given ``setup``."""

    @functools.wraps(command)
    def read(
        users: int,
        prompt_tokens: int,
        output_tokens: int,
        threads: int,
        layers: int,
        hidden: int,
        intermediate: int,
        eager: bool,
        **own: Any,
    ) -> None:
        shape = Shape(hidden, intermediate, layers, heads=hidden // 64)
        work = Work(users, prompt_tokens, output_tokens)
        command(setup=Setup(shape, work, threads, eager), **own)

    found: Callable[..., None] = read
    for option in reversed(_OPTIONS):
        found = option(found)
    return found
