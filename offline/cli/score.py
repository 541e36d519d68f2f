"""`vmprune score`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from offline.calibration.corpus import DEFAULT_LENGTH, DEFAULT_SEQUENCES
from offline.cli.models import NAMES, model_folder
from offline.cli.scored import facts_of, show, warn
from offline.runs.device import DType
from offline.texts.chat import CHAT_TEMPLATE_HELP, ChatTemplate
from offline.texts.mixes import DEFAULT
from offline.texts.spec import PACK_HELP
from vllm_moe_prune.errors import PruneError

if TYPE_CHECKING:
    from offline.calibration.corpus import Domain
    from offline.calibration.memory import MemoryEstimate
    from offline.calibration.scores import Scores
    from vllm_moe_prune.checkpoint import Checkpoint
    from vllm_moe_prune.provenance import Provenance

_ITEM_BYTES: dict[DType, int | None] = {"auto": None, "bfloat16": 2, "float32": 4}
_OWN = ("pack", "chat_template")  # told where they are given


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
    with staged(out, force=force) as folder:
        expected, domains, scores = (_score_live if live else _score)(base, parts, settings)
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


def _texts(base: Checkpoint, parts: Sequence[Any], settings: dict[str, Any]) -> tuple[Domain, ...]:
    """Return the text of all parts as the model's tokens."""
    from transformers import AutoTokenizer

    from offline.calibration.corpus import load_domains

    return load_domains(
        parts,
        AutoTokenizer.from_pretrained(base.folder, local_files_only=True),
        length=settings["length"],
        pack=settings["pack"],
        chat_template=settings["chat_template"] or "auto",
        seed=settings["seed"],
    )


def _provenance(
    base: Checkpoint,
    domains: Sequence[Domain],
    settings: dict[str, Any],
    dtype: DType,
    more: Mapping[str, Any],
) -> Provenance:
    """Say how scores are made.

    :param more: settings of the engine, where it is not the default
    """
    from offline.calibration.corpus import text_settings
    from vllm_moe_prune.hub import origin
    from vllm_moe_prune.provenance import Provenance

    return Provenance.now(
        "score",
        settings={
            "calibration": settings["calibration"],
            "length": settings["length"] or DEFAULT_LENGTH,
            **{name: settings[name] for name in _OWN if settings[name] is not None},
            "gradients": settings["gradients"],
            "dtype": dtype,
            **more,
            **origin(base.folder),
            **text_settings(domains),
        },
        seed=settings["seed"],
        data=tuple(domain.identity for domain in domains),
    )


def _score_live(
    base: Checkpoint, parts: Sequence[Any], settings: dict[str, Any]
) -> tuple[MemoryEstimate, tuple[Domain, ...], Scores]:
    import psutil

    from offline.calibration.live import STEP_TOKENS, engine_settings, score_live
    from offline.calibration.memory import estimate_live
    from offline.cli.progress import progress
    from offline.data.models import complete
    from offline.runs.device import pick_dtype
    from serve.server import cpu_build

    domains = _texts(base, parts, settings)
    dtype = pick_dtype(settings["dtype"], "cpu" if cpu_build() else "cuda")
    ranks = settings["tensor_parallel"]
    arguments: dict[str, Any] = {"dtype": dtype, "tensor_parallel_size": ranks}
    if settings["gpu_memory"] is not None:
        arguments["gpu_memory_utilization"] = settings["gpu_memory"]
    engine = engine_settings(base, domains, step_tokens=STEP_TOKENS, **arguments)
    expected = estimate_live(
        base,
        parts,
        length=settings["length"] or DEFAULT_LENGTH,
        step_tokens=engine["max_num_batched_tokens"],
        cache=engine["kv_cache_memory_bytes"],
        item_bytes=_ITEM_BYTES[dtype],
        ranks=ranks,
        on_host=cpu_build(),
        program=psutil.Process().memory_info().rss,
    )
    warn(expected)
    made = _provenance(base, domains, settings, dtype, {"engine": "vllm", "tensor_parallel": ranks})
    complete(base.folder)
    with progress() as reporter:
        scores = score_live(base.folder, domains, reporter=reporter, provenance=made, **arguments)
    return expected, domains, scores


def _score(
    base: Checkpoint, parts: Sequence[Any], settings: dict[str, Any]
) -> tuple[MemoryEstimate, tuple[Domain, ...], Scores]:
    import psutil

    from offline.calibration.memory import estimate
    from offline.cli.progress import progress
    from offline.data.models import complete
    from offline.engines.quantised.need import dequantised
    from offline.runs.device import batch_tokens, pick_device, pick_dtype

    domains = _texts(base, parts, settings)
    device = pick_device(settings["device"])
    dtype = pick_dtype(settings["dtype"], device)
    estimated = partial(
        estimate,
        base,
        parts,
        length=settings["length"] or DEFAULT_LENGTH,
        tokens_per_batch=batch_tokens(device),
        item_bytes=_ITEM_BYTES[dtype],
        gradients=settings["gradients"],
        program=psutil.Process().memory_info().rss if device == "cpu" else 0,
    )
    expected = estimated(offload=settings["offload"] is not None)
    if (found := dequantised(base.folder)) is not None:
        growth = found.size(dtype) / estimated(offload=False).memory["weights"]
        for sizes, name in ((expected.memory, "weights"), (expected.disk, "offloaded layers")):
            if name in sizes:
                sizes[name] = round(sizes[name] * growth)
    warn(expected)

    from offline.calibration.calibrate import calibrate
    from offline.engines.local.transformers import TransformersEngine

    provenance = _provenance(base, domains, settings, dtype, {})
    complete(base.folder)
    with _inside(settings["offload"]) as offload, progress() as reporter:
        engine = TransformersEngine(base.folder, device=device, dtype=dtype, offload=offload)
        scores = calibrate(
            engine,
            domains,
            gradients=settings["gradients"],
            scratch=settings["scratch"],
            reporter=reporter,
            provenance=provenance,
        )
    return expected, domains, scores


@contextmanager
def _inside(folder: Path | None) -> Iterator[Path | None]:
    """Give a folder inside one that the user named, and remove it afterwards."""
    if folder is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="vmprune-", dir=folder) as inside:
        yield Path(inside)
