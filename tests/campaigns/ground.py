"""Tiny models, and the commands that campaigns disturb: each takes seconds."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns.child import run
from tests.digest_samples import write_samples
from tests.digests import COMPRESS, FEW, SEARCH, TEXT, WHERE
from tests.tiny import make_tiny_mixtral

ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "SOURCE_DATE_EPOCH": "1700000000",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_EEP = (
    *("compress", "--model", "model", "--method", "eep", "--keep", "4", "--task", "colours.yaml"),
    *("--seed", "3", "--fitness", "margin", "--no-racing", "--finalists", "2"),
    *("--random-maps", "1", "--compare", "frequency", *SEARCH, *FEW, *WHERE),
)
_RECOVER = (
    *("recover", "--model", "plain", "--task", "colours.yaml", "--steps", "4", "--shots", "1"),
    *("--learning-rate", "0.01", "--batch", "4", "--test-items", "10", *WHERE),
)


@dataclass(frozen=True, slots=True)
class Command:
    """One command without its ``--out``; ``older``: it replaces a finished run of another base."""

    words: tuple[str, ...]
    older: bool = False

    def at(self, out: Path) -> list[str]:
        """Return the words of the command that writes there."""
        return [*self.words, "--out", str(out)]


COMMANDS: Mapping[str, Command] = {
    "build": Command(("build", "--model", "model", "--map", "map")),
    "score": Command(
        (
            *("score", "--model", "model", "--calibration", TEXT, "--length", "32"),
            *("--gradients", *WHERE),
        )
    ),
    "compress, eep": Command(_EEP),
    "compress, lottery": Command(("compress", "--model", "model", *COMPRESS["lottery"], *WHERE)),
    "recover": Command(_RECOVER),
    "compress --force over another base's": Command((*_EEP, "--force"), older=True),
}


@dataclass(frozen=True, slots=True)
class Ground:
    """A folder with models, texts and tasks, in which commands run."""

    folder: Path

    def prepare(self, place: Path, command: Command) -> None:
        """Make the folder that a command writes to: empty but for an older run, if it has one."""
        if not place.is_mount():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
        for name in ("out", "out.run") if command.older else ():
            shutil.copytree(self.folder / "older" / name, place / name)

    def run(self, words: list[str]) -> tuple[int, str]:
        """Run a command to its end, and return its exit status and what it said on stderr."""
        return run(words, self.folder)


def make_ground(folder: Path, names: Iterable[str] = COMMANDS) -> Ground:
    """Write everything, in this process: what commands import is here then, and in its children.

    :param names: of the commands that will be disturbed
    """
    os.environ |= ENVIRONMENT | {
        "VMPRUNE_CACHE": str(folder / "cache"),
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_CACHE": str(folder / "hub" / "hub"),
        "HF_DATASETS_CACHE": str(folder / "hub" / "datasets"),
    }
    write_samples(folder)
    commands = [COMMANDS[name] for name in names]
    warm = folder / "warm"
    made = [
        COMMANDS["score"].at(folder / "scores"),
        _plan("map", "--keep-per-layer", "0:3,1:6", "--top-k", "0:1,1:2"),
        _plan("plain-map", "--keep", "4"),
        ["build", "--model", "model", "--map", "plain-map", "--out", "plain"],
    ]
    if any(command.older for command in commands):
        small = {"hidden": 32, "heads": 1, "kv_heads": 1, "intermediate": 48}
        make_tiny_mixtral(folder / "other", seed=1, **small)
        (folder / "older").mkdir()
        words = ["other" if word == "model" else word for word in _EEP]
        made.append([*words, "--out", str(folder / "older" / "out")])
    made += [command.at(warm / "out") for command in commands]
    for one in [*made, ["runs", "clean", "--in", str(warm)]]:
        shutil.rmtree(warm, ignore_errors=True)
        warm.mkdir()
        status, said = run(one, folder, fork=False)
        assert status == 0, (one, said)
    gc.collect()
    gc.freeze()  # what is imported is never garbage: finetunes look for some, for 0.3 s each time
    return Ground(folder)


def _plan(out: str, *more: str) -> list[str]:
    return ["plan", "--scores", "scores", "--criterion", "min-ean", *more, "--out", out]
