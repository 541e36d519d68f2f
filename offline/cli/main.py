"""`vmprune`: the group of commands and what becomes of errors."""

from __future__ import annotations

import errno
import sys

import click

from offline.cli.analyze import analyze
from offline.cli.build import build
from offline.cli.check import check
from offline.cli.coefficients import import_eep
from offline.cli.compress import compress
from offline.cli.demo import demo
from offline.cli.evaluate import evaluate
from offline.cli.export import export
from offline.cli.inspect import inspect
from offline.cli.plan import plan
from offline.cli.recover import recover
from offline.cli.report import report
from offline.cli.score import score
from vllm_moe_prune import __version__
from vllm_moe_prune.errors import PruneError

_EXTRAS = {"locust": "loadtest", "vllm": "cpu"}  # any other module comes with [offline]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vmprune")
def cli() -> None:
    """Prune the experts of a Mixture-of-Experts model and prove what it costs.

    \b
    Example:
        vmprune demo model --out base
        vmprune compress --model base --task sciq --keep 4 --out pruned
        vmprune check pruned
        vllm serve pruned --load-format pruned_moe
    """


_COMMANDS = (
    compress,
    score,
    plan,
    analyze,
    build,
    inspect,
    export,
    check,
    evaluate,
    recover,
    report,
    import_eep,
    demo,
)
for _command in _COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Run `vmprune`; a user's mistake ends with one line, a hint and status 1."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted; the same command continues", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PruneError as error:
        _fail(error.message, error.hint)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        extra = _EXTRAS.get(name, "offline")
        _fail(f"this command needs {name}", f"pip install 'vllm-moe-prune[{extra}]'")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
            raise
        _fail(f"{error.filename or 'output'}: {error.strerror}", "choose another place to write to")


def _fail(message: str, hint: str | None) -> None:
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"\nhint: {hint}", err=True)
    sys.exit(1)
