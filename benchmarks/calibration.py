"""Cost of a calibration pass over a plain forward (and backward) pass over the same tokens.

    python -m benchmarks.calibration --model base
    python -m benchmarks.calibration --engine vllm

All criteria without gradients against the model's decoder alone (without the vocabulary head), and
all with gradients against forward, loss and backward; rounds are interleaved and medians compared.
Then how the memory of scoring grows when tokens or layers double, on models made for it, how many
kernels a batch would be on a GPU, and what a plan from saved scores costs. The last line of stdout
is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import torch
from rich.console import Console

from benchmarks.dummy_model import Shape, write_tokenizer
from benchmarks.launches import of_many_experts
from offline.calibration.calibrate import calibrate
from offline.calibration.corpus import Domain, load_domains, parse_calibration
from offline.calibration.scores import Scores
from offline.calibration.walk import TextBatch, batches_of
from offline.engines.local.transformers import TransformersEngine
from offline.finetune.peak import PeakMemory
from offline.runs.device import pick_device, pick_dtype
from vllm_moe_prune.provenance import DataIdentity

_SAY = Console(stderr=True, highlight=False, markup=False)
# Large enough that hidden states of all layers would show, small enough to be made in seconds.
_SMALL = Shape(hidden=512, intermediate=1536, layers=4, heads=8, kv_heads=4, vocab=4096)
_SMALL_TOKENS = 32  # sequences of 512


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="small one if absent")
@click.option("--engine", type=click.Choice(["transformers", "vllm"]), default="transformers")
@click.option("--calibration", help="text as of vmprune score; random tokens if not given")
@click.option("--sequences", default=64)
@click.option("--length", default=512)
@click.option("--rounds", default=3)
@click.option("--device", default="auto")
@click.option("--gradients/--no-gradients", default=True)
@click.option("--memory/--no-memory", default=True)
@click.option("--launches/--no-launches", default=True)
def main(
    model: Path | None,
    engine: str,
    calibration: str | None,
    sequences: int,
    length: int,
    rounds: int,
    device: str,
    gradients: bool,
    memory: bool,
    launches: bool,
) -> None:
    """Measure and print one line of JSON."""
    with tempfile.TemporaryDirectory(prefix="vmprune-") as folder:
        work = Path(folder)
        if engine == "vllm":
            click.echo(json.dumps(_in_vllm(work, model, calibration, sequences, length, rounds)))
            return
        if model is None:
            model = write_small(work / "model", layers=_SMALL.layers)
        place = pick_device(device)
        local = TransformersEngine(model, device=place, dtype=pick_dtype("auto", place))
        if calibration is None:
            domains = (random_domain(local, sequences, length),)
        else:
            parts = parse_calibration(calibration, sequences)
            domains = load_domains(parts, local.tokenizer, length=length)
        timed = _timed(local, domains, rounds, gradients)
        ratios = {
            name: [ours / plain for ours, plain in zip(timed[f"our_{name}"], seconds, strict=True)]
            for name, seconds in timed.items()
            if not name.startswith("our_")
        }
        detail: dict[str, Any] = {
            "forward": _median(ratios["forward"]),
            "forward_per_round": [round(ratio, 3) for ratio in ratios["forward"]],
            "seconds": {name: _median(seconds) for name, seconds in timed.items()},
            "plan_over_scoring": _plan_share(local, domains, work / "scores"),
            "tokens": sum(domain.num_tokens for domain in domains),
            "model": model.name if model.parent != work else "made on the fly",
            "device": place,
            "threads": torch.get_num_threads(),
        }
        if gradients:
            detail["forward_and_backward"] = _median(ratios["forward_and_backward"])
        if launches:
            detail["per_layer_and_batch"] = of_many_experts(work / "many")
        if memory:
            detail["peak_mib"] = _peaks(work)
    report = {
        "name": "calibration_pass_over_plain_forward",
        "value": _median(ratios["forward"]),
        "unit": "ratio of seconds, all non-gradient criteria over a forward pass, same tokens",
        "detail": detail,
    }
    click.echo(json.dumps(report))


def _in_vllm(
    work: Path,
    model: Path | None,
    calibration: str | None,
    sequences: int,
    length: int,
    rounds: int,
) -> dict[str, Any]:
    """Return the report of scoring inside vLLM."""
    from transformers import AutoTokenizer

    from benchmarks.live_calibration import SHAPE, measure, of_one_step
    from vllm_moe_prune.checkpoint import read_config

    folder = model or write_small(work / "model", layers=SHAPE.layers, shape=SHAPE)
    if calibration is None:
        vocab = int(read_config(folder)["vocab_size"])
        domains = of_one_step(random_tokens(vocab, sequences, length))
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        domains = load_domains(parse_calibration(calibration, sequences), tokenizer, length=length)
    detail = measure(folder, domains, rounds, _SAY.print)
    return {
        "name": "scoring_in_vllm_over_prefill",
        "value": _median(detail["per_round"]),
        "unit": "ratio of seconds, all criteria of tokens over vLLM's prefill, same tokens",
        "detail": {**detail, "model": "made on the fly" if model is None else model.name},
    }


def _timed(
    engine: TransformersEngine, domains: tuple[Domain, ...], rounds: int, gradients: bool
) -> dict[str, list[float]]:
    """Return seconds of each round of each pass; a first round is not counted."""
    batches = batches_of(domains, engine.tokens_per_batch)
    passes: dict[str, Callable[[], object]] = {
        "forward": lambda: forward(engine, batches),
        "our_forward": lambda: calibrate(engine, domains),
    }
    if gradients:
        passes |= {
            "forward_and_backward": lambda: forward_and_backward(engine, batches),
            "our_forward_and_backward": lambda: calibrate(engine, domains, gradients=True),
        }
    timed: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(rounds + 1):
        for name, run in passes.items():
            seconds = _seconds(run, engine)
            if number:
                timed[name].append(seconds)
                _SAY.print(f"round {number}: {name} {seconds:.2f} s")
    return timed


def _seconds(run: Callable[[], object], engine: TransformersEngine) -> float:
    def wait() -> None:
        if engine.model.device.type == "cuda":
            torch.cuda.synchronize(engine.model.device)

    wait()
    begin = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - begin


@torch.no_grad()
def forward(engine: TransformersEngine, batches: list[TextBatch]) -> None:
    """Take the batches through the decoder, without the head that a calibration leaves out too."""
    for batch in batches:
        engine.model.model(input_ids=batch.token_ids.to(engine.model.device), use_cache=False)


def forward_and_backward(engine: TransformersEngine, batches: list[TextBatch]) -> None:
    """Accumulate the gradients of all weights of the next-token loss."""
    engine.model.zero_grad(set_to_none=True)
    for batch in batches:
        ids = batch.token_ids.to(engine.model.device)
        logits = engine.model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
        ).backward()
    engine.model.zero_grad(set_to_none=True)


def _plan_share(
    engine: TransformersEngine, domains: tuple[Domain, ...], folder: Path
) -> float | None:
    """Return the seconds of reading scores and planning over those of making the scores."""
    from offline.plan.plan import plan
    from offline.plan.recipe import PlanRecipe

    made: list[Scores] = []
    scoring = _seconds(lambda: made.append(calibrate(engine, domains)), engine)
    folder.mkdir()
    made[0].save(folder)
    recipe = PlanRecipe(criterion="min-ean", keep=max(engine.top_k, 2))

    def run() -> None:
        plan(Scores.load(folder), recipe)

    planning = statistics.median(_seconds(run, engine) for _ in range(5))
    return round(planning / scoring, 5)


def random_domain(engine: TransformersEngine, sequences: int, length: int) -> Domain:
    """Return sequences of random tokens."""
    return random_tokens(engine.model.get_input_embeddings().num_embeddings, sequences, length)


def random_tokens(vocab: int, sequences: int, length: int) -> Domain:
    """Return sequences of random tokens out of ``vocab``."""
    token_ids = np.random.default_rng(0).integers(0, vocab, (sequences, length))
    return Domain("random", token_ids, DataIdentity(name="random", count=sequences, sha256=""))


def write_small(folder: Path, *, layers: int, shape: Shape = _SMALL) -> Path:
    """Write a random checkpoint with a tokenizer; in bfloat16 if it is not the default's shape."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocab,
        num_local_experts=shape.experts,
        max_position_embeddings=2048,
        sliding_window=None,
    )
    model = MixtralForCausalLM(config)
    model.to(torch.float32 if shape == _SMALL else torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder, shape.vocab)
    return folder


def _peaks(work: Path) -> dict[str, float]:
    """Return the MiB that scoring adds to an offloaded model, each in a process of its own."""
    models = {n: write_small(work / f"layers-{n}", layers=n) for n in (4, 8)}
    cases = {
        "base": (4, _SMALL_TOKENS),
        "tokens_doubled": (4, 2 * _SMALL_TOKENS),
        "layers_doubled": (8, _SMALL_TOKENS),
        "both_doubled": (8, 2 * _SMALL_TOKENS),
    }
    found = {}
    for name, (layers, sequences) in cases.items():
        code = (
            "import sys; from benchmarks.calibration import peak; "
            "print(peak(sys.argv[1], int(sys.argv[2])))"
        )
        arguments = [sys.executable, "-c", code, str(models[layers]), str(sequences)]
        output = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[name] = round(float(output.split()[-1]), 1)
        _SAY.print(f"{name}: scoring adds {found[name]} MiB")
    return found


def peak(model: str, sequences: int) -> float:
    """Score an offloaded model in this process, and return the MiB that this took at most."""
    with tempfile.TemporaryDirectory(prefix="vmprune-") as offload:
        engine = TransformersEngine(Path(model), dtype="float32", offload=Path(offload))
        domain = random_domain(engine, sequences, 512)
        calibrate(engine, (random_domain(engine, 1, 64),))  # what libraries allocate once
        before = psutil.Process().memory_info().rss
        with PeakMemory(torch.device("cpu")) as found:  # which forgets the peak of loading
            calibrate(engine, (domain,), gradients=True)
        return (found.found - before) / 1024**2


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


if __name__ == "__main__":
    main()
