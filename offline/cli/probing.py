"""Flags of `vmprune check` that ask probes, and what they mean together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offline.cli.options import Command
from vllm_moe_prune.errors import PruneError

if TYPE_CHECKING:
    from offline.check.asking import Asked
    from offline.check.served import Target
    from offline.results.check import AnswerCheck
    from offline.runs.progress import Reporter

_TOKENS = 1024
_SAMPLINGS = ("greedy", "own")
_OPTIONS = (
    click.option(
        "--probes",
        type=click.IntRange(min=1),
        help="see how the answers to so many prompts end, of OUT and of the base",
    ),
    click.option(
        "--prompts",
        type=click.Path(path_type=Path),
        help="file of your own probes, JSONL or a text on each line; else those built in",
    ),
    click.option(
        "--tokens",
        type=click.IntRange(min=1),
        help=f"of an answer at most  [default: {_TOKENS}]",
    ),
    click.option(
        "--sampling",
        multiple=True,
        help="greedy, own (the server's settings) or temperature=0.7,top_p=0.8; again for each "
        f"way  [default: {' and '.join(_SAMPLINGS)}]",
    ),
    click.option("--eager", is_flag=True, help="ask servers without compiled graphs"),
    click.option("--endpoint", help="ask the server at this address; OUT is only a name then"),
    click.option("--base-endpoint", help="and the base's server at this one"),
    click.option("--served-name", help="the model's name at --endpoint; the first that it serves"),
    click.option("--base-served-name", help="the base's name at --base-endpoint"),
    click.option("--force", is_flag=True, help="forget answers of other models or other flags"),
)


def probe_options(command: Command) -> Command:
    """Add the flags."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Probing:
    """What the flags say; ``args`` are those of `vllm serve`."""

    probes: int | None
    prompts: Path | None
    tokens: int | None
    sampling: tuple[str, ...]
    eager: bool
    endpoint: str | None
    base_endpoint: str | None
    served_name: str | None
    base_served_name: str | None
    force: bool
    args: tuple[str, ...]

    @property
    def wanted(self) -> bool:
        """Whether anything is asked."""
        return self.probes is not None or self.prompts is not None

    def check(self, of_serving: Mapping[str, bool]) -> None:
        """Refuse flags that do not go together.

        :param of_serving: flags of how a model is served, and whether they are given
        :raises PruneError: naming the flag
        """
        if not self.wanted:
            for flag, given in self._given().items():
                if given:
                    raise PruneError(f"{flag} needs probes", hint="add --probes 400")
        if self.endpoint is not None:
            own = {**of_serving, "--eager": self.eager, "ARGS": bool(self.args)}
            for flag, given in own.items():
                if given:
                    why = "the server is there, and decides that"
                    raise PruneError(f"{flag} does not go with --endpoint", hint=why)
            return
        named = ("--base-endpoint", "--served-name", "--base-served-name")
        for flag, given in self._given().items():
            if given and flag in named:
                raise PruneError(f"{flag} needs --endpoint")

    def _given(self) -> dict[str, bool]:
        return {
            "--tokens": self.tokens is not None,
            "--sampling": bool(self.sampling),
            "--eager": self.eager,
            "--endpoint": self.endpoint is not None,
            "--base-endpoint": self.base_endpoint is not None,
            "--served-name": self.served_name is not None,
            "--base-served-name": self.base_served_name is not None,
            "--force": self.force,
            "ARGS": bool(self.args),
        }

    def asked(self) -> Asked:
        """Return the probes and how they are asked.

        :raises PruneError: if there are none of them, or no such way of sampling
        """
        from offline.check.asking import Asked
        from offline.check.deployed import probes_of
        from offline.check.sampling import Sampling

        ways = tuple(dict.fromkeys(self.sampling or _SAMPLINGS))
        for way in ways:
            Sampling.parse(way)
        return Asked(probes_of(self.prompts, self.probes), ways, self.tokens or _TOKENS)

    def endpoints(self) -> tuple[Target, ...]:
        """Return the servers that are there, the base's first."""
        from offline.check.served import Target

        found = []
        if self.base_endpoint is not None:
            url, model = self.base_endpoint, self.base_served_name
            found.append(Target("base", url, url=url, model=model))
        assert self.endpoint is not None
        return (*found, Target("pruned", self.endpoint, url=self.endpoint, model=self.served_name))

    def answers(
        self, out: Path, targets: Sequence[Target], asked: Asked, reporter: Reporter
    ) -> AnswerCheck:
        """Ask."""
        from offline.check.deployed import check_answers

        source = "built-in" if self.prompts is None else str(self.prompts)
        return check_answers(
            out, targets, asked, source=source, force=self.force, reporter=reporter
        )


def probing_of(args: tuple[str, ...], given: Mapping[str, Any]) -> Probing:
    """Return what the flags of `probe_options` say."""
    return Probing(**given, args=args)
