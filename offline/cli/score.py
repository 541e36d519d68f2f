"""`vmprune score`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click

from offline.calibration.corpus import DEFAULT_LENGTH, DEFAULT_SEQUENCES
from offline.cli.models import NAMES, model_folder
from offline.cli.scored import facts_of, show
from offline.cli.scoring import score_in_transformers, score_in_vllm
from offline.cli.verify import with_verify
from offline.runs.device import DType
from offline.texts.chat import CHAT_TEMPLATE_HELP, ChatTemplate
from offline.texts.mixes import DEFAULT
from offline.texts.spec import PACK_HELP
from vllm_moe_prune.errors import PruneError


@click.command(
    epilog="Example: vmprune score --model base --calibration code:64,prose.txt:64 --out scores"
)
@click.option("--model", type=click.Path(path_type=Path), required=True, help=f"base: {NAMES}")
@click.option(
    "--calibration",
    default=DEFAULT,
    show_default=True,
    help="text: [NAME=]SOURCE[:SEQUENCES],...; a source is a file or a folder of txt, json, jsonl, "
    "csv or parquet, hf:Org/Name[@revision][/config][:split], task:NAME, a domain of the demo, or "
    "a mix (default, c4, reap); #COLUMN behind it names the column; each is a domain with scores "
    "of its own (docs/text.md)",
)
@click.option("--chat-template", type=click.Choice(get_args(ChatTemplate)), help=CHAT_TEMPLATE_HELP)
@click.option("--pack/--no-pack", default=None, help=PACK_HELP)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to write")
@click.option("--gradients", is_flag=True, help="also for the criteria egs, ege, ego, egn")
@click.option(
    "--length",
    type=click.IntRange(min=2),
    help=f"tokens of a sequence  [default: {DEFAULT_LENGTH}, or what a mix says]",
)
@click.option(
    "--sequences",
    type=click.IntRange(min=1),
    default=DEFAULT_SEQUENCES,
    show_default=True,
    help="of each domain that does not say how many",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--engine",
    type=click.Choice(["transformers", "vllm"]),
    default="transformers",
    show_default=True,
    help="vllm: the model as it is served, also quantised or on several GPUs; no gradients",
)
@click.option(
    "--tensor-parallel",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="with --engine vllm: ranks that share the model",
)
@click.option(
    "--gpu-memory",
    type=click.FloatRange(0, 1, min_open=True),
    help="with --engine vllm: share of each GPU's memory that it may take; vLLM's own if not given",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="of --engine transformers: cpu, cuda (as many GPUs as the model needs), cuda:1, ...",
)
@click.option("--dtype", type=click.Choice(get_args(DType)), default="auto", show_default=True)
@click.option(
    "--offload",
    type=click.Path(path_type=Path),
    help="keep the decoder layers on the disk of this folder, for a model larger than memory",
)
@click.option(
    "--scratch",
    type=click.Path(path_type=Path),
    help="folder for hidden states while it runs; the system's temporary folder if not given",
)
@with_verify
@click.option("--force", is_flag=True, help="replace OUT if it exists")
@click.option("--json", "as_json", is_flag=True, help="print JSON on stdout")
def score(model: Path, out: Path, force: bool, as_json: bool, **settings: Any) -> None:
    """Take calibration text through a model once, and save what every criterion needs.

    `vmprune plan` then makes routing maps from the scores in seconds: any criterion, any number of
    experts, any blend of the domains.
    """
    from offline.runs.output import check_output, staged

    check_output(out, force=force, inputs=(model, *settings.values()))
    from offline.calibration.corpus import parse_calibration
    from offline.calibration.needs import open_base
    from offline.runs.device import check_device

    _check_engine(settings)
    for name in ("offload", "scratch"):
        folder = settings[name]
        if folder is not None and not folder.is_dir():
            raise PruneError(f"--{name}: {folder} is not a folder", hint="create it first")
    parts = parse_calibration(settings["calibration"], settings["sequences"])
    if (length := settings["length"]) is not None:
        parts = tuple(replace(part, length=length) for part in parts)
    check_device(settings["device"])
    model = model_folder(model)
    longest = max(part.length or DEFAULT_LENGTH for part in parts)
    live = settings["engine"] == "vllm"
    base = open_base(
        model,
        length=longest,
        in_vllm=live,
        dtype=settings["dtype"],
        gradients=settings["gradients"],
        in_parts=settings["offload"] is not None,
    )
    scoring = score_in_vllm if live else score_in_transformers
    with staged(out, force=force) as folder:
        expected, domains, scores = scoring(base, parts, settings)
        scores.save(folder)
    facts = {
        "out": str(out),
        "gradients": settings["gradients"],
        "estimate": {"memory": expected.memory, "disk": expected.disk},
        "domains": {domain.name: facts_of(domain, scores) for domain in domains},
    }
    if as_json:
        click.echo(json.dumps(facts))
    else:
        show(facts)


def _check_engine(settings: dict[str, Any]) -> None:
    """Refuse what the chosen engine cannot do, before anything is loaded."""
    if settings["engine"] == "transformers":
        if settings["tensor_parallel"] > 1:
            raise PruneError("--tensor-parallel is of --engine vllm", hint="add --engine vllm")
        if settings["gpu_memory"] is not None:
            raise PruneError("--gpu-memory is of --engine vllm", hint="add --engine vllm")
        return
    if settings["gradients"]:
        raise PruneError(
            "--gradients: vLLM computes no gradients",
            hint="use --engine transformers, or leave out egs, ege, ego and egn",
        )
    for name, without in (("offload", None), ("scratch", None), ("device", "auto")):
        if settings[name] != without:
            raise PruneError(f"--{name} is of --engine transformers", hint=f"leave out --{name}")
