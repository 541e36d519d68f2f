"""`--verify`: models are told apart by all bytes of their weights, in place of samples."""

from __future__ import annotations

from typing import Any

import click

from offline.cli.environment import set_for
from vllm_moe_prune.fingerprint import VERIFY


def _verify(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        set_for(context, VERIFY)


VERIFY_SETTINGS: dict[str, Any] = {
    "is_flag": True,
    "expose_value": False,
    "callback": _verify,
    "help": "read all bytes of the weights to tell the model from others; else samples of them",
}
with_verify = click.option("--verify", **VERIFY_SETTINGS)
