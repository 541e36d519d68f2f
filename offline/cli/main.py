"""`vmprune`: the group of commands and what becomes of errors."""

from __future__ import annotations

import errno
import logging
import sys

import click

from offline.cli.lazy import LazyCommand, LazyGroup
from offline.cli.signals import LINE, Terminated, ending_in_time
from vllm_moe_prune import __version__
from vllm_moe_prune.errors import PruneError, harmless, shown

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# A file that is a folder, or may not be read, or whose name cannot be one.
_NOT_SO = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_EXTRAS = {"locust": "loadtest", "vllm": "cpu"}  # any other module comes with [offline]


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vmprune")
def cli() -> None:
    """Prune the experts of a Mixture-of-Experts model and prove what it costs.

    \b
    Example:
        vmprune demo model --out base
        vmprune compress --model base --task sciq --keep 4 --out pruned
        vmprune check pruned
        vmprune serve pruned
    """


# Name, where the command is, and the first sentence of its help: the same words, as a test holds.
_COMMANDS = (
    (
        "compress",
        "offline.cli.compress:compress",
        "Choose which experts to keep, by a task, and write the smaller checkpoint.",
    ),
    (
        "score",
        "offline.cli.score:score",
        "Take calibration text through a model once, and save what every criterion needs.",
    ),
    (
        "plan",
        "offline.cli.plan:plan",
        "Choose experts by a criterion from saved scores, and write their routing map.",
    ),
    (
        "sensitivity",
        "offline.cli.sensitivity:sensitivity",
        "Measure what a model loses when each layer alone keeps fewer experts.",
    ),
    (
        "sweep",
        "offline.cli.sweep:sweep",
        "Measure many choices from one scoring pass, and name the smallest that passes the gates.",
    ),
    (
        "criteria",
        "offline.cli.criteria:criteria",
        "List the criteria: what each says of an expert, its formula and its source.",
    ),
    (
        "tasks",
        "offline.cli.tasks:tasks",
        "List the tasks that --task takes: names, metrics and splits.",
    ),
    (
        "analyze",
        "offline.cli.analyze:analyze",
        "Show how a model's experts are used, and what criteria make of it.",
    ),
    (
        "build",
        "offline.cli.build:build",
        "Write the pruned checkpoint that a routing map describes.",
    ),
    (
        "inspect",
        "offline.cli.inspect:inspect",
        "Describe a base checkpoint, a pruned checkpoint or a routing map.",
    ),
    (
        "export",
        "offline.cli.export:export",
        "Write what a routing map does, for another tool.",
    ),
    (
        "serve",
        "offline.cli.serve:serve",
        "Check a pruned model in seconds, then become `vllm serve` with the right flags.",
    ),
    (
        "check",
        "offline.cli.check:check",
        "Serve OUT with vLLM and verify it: parity with the reference, and how its answers end.",
    ),
    (
        "eval",
        "offline.cli.evaluate:evaluate",
        "Measure a checkpoint on a task or on plain text, with 95 % confidence intervals.",
    ),
    (
        "recover",
        "offline.cli.recover:recover",
        "Give a pruned checkpoint back what it lost: finetune it on tasks or on instructions.",
    ),
    (
        "report",
        "offline.cli.report:report",
        "Draw OUT/report.html from the result of `vmprune compress` or `vmprune recover`.",
    ),
    (
        "runs",
        "offline.cli.runs:runs",
        "List the folders in which runs keep what lets them continue, with their sizes.",
    ),
    (
        "import-eep",
        "offline.cli.coefficients:import_eep",
        "Make a routing map from a coefficient file that the EEP authors released.",
    ),
    (
        "demo",
        "offline.cli.demo:demo",
        "Make a small but real MoE from published packages, and try everything on it.",
    ),
)
for _name, _source, _line in _COMMANDS:
    cli.add_command(LazyCommand(_name, _source, _line))


def main() -> None:
    """Run `vmprune`; a user's mistake ends with one line, a hint and status 1."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Formatter())
    try:
        with ending_in_time():
            cli(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt) as error:  # within click, or beside it
        click.echo(LINE, err=True)
        terminated = any(isinstance(one, Terminated) for one in (error, error.__cause__))
        sys.exit(143 if terminated else 130)
    except click.ClickException as error:
        vars(error)["message"] = shown(error.message)
        error.show()
        sys.exit(error.exit_code)
    except PruneError as error:
        _fail(error.message, error.hint)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        extra = _EXTRAS.get(name, "offline")
        _fail(f"this command needs {name}", f"pip install 'vllm-moe-prune[{extra}]'")
    except OSError as error:
        if error.errno not in (*_NO_ROOM, *_NOT_SO):
            raise
        hint = "choose another place to write to" if error.errno in _NO_ROOM else None
        _fail(shown(f"{error.filename or 'output'}: {error.strerror}"), hint)


class _Formatter(logging.Formatter):
    """Notes may quote files: nothing in them acts on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


def _fail(message: str, hint: str | None) -> None:
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
    sys.exit(1)
