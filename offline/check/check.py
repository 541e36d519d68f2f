"""`vmprune check`: what vLLM serves is what the routing map says, and it still speaks.

The reference is the base with the map applied as masks, in transformers or in vLLM's live engine
(or, for a plain checkpoint without its base, the checkpoint itself). vLLM's greedy tokens are
scored by the reference. A quantised reference in transformers is dequantised.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from offline.check.answers import Answer, chat, continued
from offline.check.probes import CHAT_PROMPTS, PROMPTS, repetition
from offline.check.reference import LiveReference, LocalReference, Reference
from offline.check.served import spec_of
from offline.data.models import complete
from offline.engines.needs import check_engine, check_tokenizer, check_vllm, check_whole
from offline.results.check import ANSWERS_FILE
from offline.runs.device import check_device, pick_device
from offline.runs.owned import read_json, refuse_foreign
from serve.server import Server, ServerSpec
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import snapshot_of
from vllm_moe_prune.provenance import write_atomic
from vllm_moe_prune.quantisation import quantiser_of
from vllm_moe_prune.routing_map import MAP_FILE, RoutingMap

if TYPE_CHECKING:
    from offline.runs.progress import Reporter

CHECK_FILE = "check.json"
_STEPS = 16
_PROBE_TOKENS = 64
# Limits on |log-probability difference|. float32: both sides sum the same products in another
# order. bfloat16: a token whose two best experts nearly tie may be routed otherwise, so a single
# token can differ much while the typical one cannot (measured: docs/parity.md).
_MEAN_LIMIT = {"float32": 2e-3, "bfloat16": 5e-2, "float16": 5e-2}
# Of quantised weights: vLLM's kernels round activations or scales as well, which the dequantised
# reference in transformers does not (measured: docs/checkpoints.md).
_QUANTISED_LIMIT = 0.15
_QUANTISED_SHARE = 0.8
_MAX_REPETITION = 0.5
_MORE_THAN_BASE = 0.25


@dataclass(frozen=True, slots=True)
class CheckItem:
    """One check: what was measured, what it must not exceed, and whether it held."""

    name: str
    ok: bool
    value: float
    limit: float
    detail: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """All checks of one model."""

    model: str
    served_as: str
    startup_seconds: float
    checks: tuple[CheckItem, ...]

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return all(item.ok for item in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``json.dumps``."""
        return {"ok": self.ok, **asdict(self)}


@dataclass(frozen=True, slots=True)
class CheckInputs:
    """What is to be checked, and what it is compared with."""

    folder: Path
    spec: ServerSpec
    reference: Path
    routing_map: RoutingMap | None
    dtype: str
    engine: str = "transformers"
    dequantised: bool = False

    @property
    def limits(self) -> tuple[float, float]:
        """The largest mean difference of log-probabilities, the least share of equal tokens."""
        if self.dequantised:
            return _QUANTISED_LIMIT, _QUANTISED_SHARE
        return _MEAN_LIMIT[self.dtype], 0.99 if self.dtype == "float32" else 0.9

    def open(self, device: str) -> Reference:
        """Load the reference; vLLM takes the device that it was built for."""
        if self.engine == "vllm":
            ranks = self.spec.tensor_parallel_size
            return LiveReference.open(self.reference, dtype=self.dtype, tensor_parallel=ranks)
        from offline.engines.local.transformers import TransformersEngine

        dtype: Any = self.dtype
        return LocalReference(TransformersEngine(self.reference, device=device, dtype=dtype))


def check(
    folder: Path,
    base: Path | None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    engine: Literal["transformers", "vllm"] = "transformers",
    tensor_parallel: int = 1,
    log: Path,
    reporter: Reporter | None = None,
) -> CheckResult:
    """Serve a pruned model with vLLM and verify it; needs vLLM, transformers and torch.

    The reference is loaded when the server has ended, so that one device has room for both.

    :param folder: a plain or compact checkpoint, or a routing map (then ``base`` is served)
    :param device: of a reference in transformers; ``auto`` takes a GPU where there is one
    :param engine: of the reference
    :param tensor_parallel: ranks of vLLM, of the server and of the reference
    :raises PruneError: if it cannot be served, or a compact one comes without its base
    """
    check_device(device)
    inputs = _inputs(folder, base, dtype, engine, tensor_parallel)
    if reporter is not None:
        reporter.stage(f"serving with vLLM and comparing with {engine}", 1)
    complete(Path(inputs.spec.model))
    complete(inputs.reference)
    from transformers import AutoTokenizer

    place = pick_device(device)
    tokenizer = AutoTokenizer.from_pretrained(inputs.reference, local_files_only=True)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    with Server(inputs.spec, log=log) as server:
        answers = [continued(server, prompt, _PROBE_TOKENS) for prompt in prompts]
        chats = [chat(server, prompt, _PROBE_TOKENS) for prompt in CHAT_PROMPTS]
        startup = server.startup_seconds
    reference = inputs.open(place)
    looping = [repetition(answer.tokens) for answer in answers]
    try:
        before = _base_repetition(reference, prompts) if inputs.routing_map else None
        reference.apply(inputs.routing_map)
        parity = _parity(reference, prompts, answers, inputs.dtype, inputs.limits)
    finally:
        reference.close()
    items = (*parity, _collapse(looping, before), *_endpoint(answers, chats))
    there = snapshot_of(folder)
    name = there.repo_id if there else folder.name
    return CheckResult(name, inputs.spec.load_format, startup, items)


def check_free(folder: Path, log: Path) -> None:
    """Refuse, before any work, to write over what is neither a result of a check nor a log.

    :raises PruneError: naming the file
    """
    known = {CHECK_FILE: {"checks", "served_as"}, ANSWERS_FILE: {"rows", "verdict"}}
    for name, names in known.items():
        fields = read_json(folder / name)
        if (folder / name).exists() and not (isinstance(fields, dict) and names <= fields.keys()):
            refuse_foreign(folder / name)
    if log.exists():
        with log.open("rb") as stream:
            begin = stream.read(1 << 16)
        if begin and b"vllm" not in begin.lower():  # which every log of a server names
            refuse_foreign(log)


def save(result: CheckResult, folder: Path) -> None:
    """Write the result beside the model, for the report."""
    write_atomic(folder / CHECK_FILE, json.dumps(result.to_json(), indent=1) + "\n")


def _inputs(
    folder: Path, base: Path | None, dtype: str, engine: str, tensor_parallel: int
) -> CheckInputs:
    """Say what is served and what it is compared with; imports no torch."""
    routing_map = RoutingMap.load(folder) if (folder / MAP_FILE).exists() else None
    served = spec_of(folder, base)
    checkpoint = Checkpoint.open(base or folder)
    check_vllm()
    check_whole(base or folder)
    check_tokenizer(base or folder)
    if base is not None and routing_map is not None:
        routing_map.check_base(checkpoint.fingerprint(), checkpoint.expert_counts())
    if dtype == "auto":
        dtype = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype"))
    if dtype not in _MEAN_LIMIT:
        raise PruneError(f"no parity limit is known for {dtype}", hint="add --dtype float32")
    otherwise = "check it where memory is larger"
    routed = base is not None and routing_map is not None
    check_engine(base or folder, engine, routed=routed, dtype=dtype, otherwise=otherwise)
    spec = replace(
        served,
        dtype=dtype,
        max_model_len=512,
        tensor_parallel_size=tensor_parallel,
        enforce_eager=True,
    )
    applied = routing_map if base else None
    dequantised = engine == "transformers" and quantiser_of(base or folder) is not None
    return CheckInputs(folder, spec, base or folder, applied, dtype, engine, dequantised)


def _parity(
    reference: Reference,
    prompts: list[list[int]],
    answers: list[Answer],
    dtype: str,
    limits: tuple[float, float],
) -> tuple[CheckItem, ...]:
    """Compare log-probabilities of the server's tokens, and whose token is the likeliest."""
    differences, agreed = [], 0
    for prompt, answer in zip(prompts, answers, strict=True):
        scores = reference.token_scores(prompt, answer.tokens[:_STEPS])
        for (log_prob, likeliest), found in zip(scores, answer.logprobs, strict=False):
            differences.append(abs(log_prob - found))
            agreed += likeliest
    total = len(differences)
    mean, worst = statistics.fmean(differences), max(differences)
    (limit, least), share = limits, agreed / total
    return (
        CheckItem(
            "parity of log-probabilities",
            mean <= limit,
            mean,
            limit,
            f"mean difference to {reference.name} over {total} tokens in {dtype}, "
            f"largest {worst:.2g}",
        ),
        CheckItem("parity of greedy tokens", share >= least, share, least, "share that agrees"),
    )


def _base_repetition(reference: Reference, prompts: list[list[int]]) -> float:
    reference.apply(None)
    answers = reference.greedy(prompts, _PROBE_TOKENS)
    return statistics.fmean(repetition(tokens) for tokens in answers)


def _collapse(looping: list[float], before: float | None) -> CheckItem:
    mean = statistics.fmean(looping)
    limit = _MAX_REPETITION if before is None else max(_MAX_REPETITION, before + _MORE_THAN_BASE)
    known = "" if before is None else f"; the base repeats {before:.2f}"
    detail = (
        f"share of repeated 4-grams in {len(looping)} greedy texts{known}. "
        "So few cannot rule out a collapse: --probes 400 asks more"
    )
    return CheckItem("repetition in a few texts", mean <= limit, mean, limit, detail)


def _endpoint(answers: list[Answer], chats: list[str]) -> tuple[CheckItem, ...]:
    empty = sum(not chat.strip() for chat in chats) + sum(not a.tokens for a in answers)
    broken = sum(not math.isfinite(value) for a in answers for value in a.logprobs)
    example = " ".join(chats[0].split())[:120]
    return (
        CheckItem("answers are not empty", empty == 0, empty, 0, f"chat says: {example}"),
        CheckItem("log-probabilities are finite", broken == 0, broken, 0, "of all probed tokens"),
    )
