"""`vmprune check`: what vLLM serves is what the routing map says, and it still speaks.

The reference is transformers: the base with the map applied as masks (or, for a plain checkpoint
without its base, the checkpoint itself). vLLM's greedy tokens are scored by the reference.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline.build.quantised import check_unquantised
from offline.check.probes import CHAT_PROMPTS, PROMPTS, repetition
from offline.data.models import complete
from offline.engines.needs import check_tokenizer, check_vllm, check_whole
from offline.runs.device import check_device, pick_device
from offline.runs.owned import read_json, refuse_foreign
from serve.server import Server, ServerSpec
from vllm_moe_prune.checkpoint import COMPACT_FOLDER, Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.hub import snapshot_of
from vllm_moe_prune.provenance import write_atomic
from vllm_moe_prune.routing_map import MAP_FILE, RoutingMap

if TYPE_CHECKING:
    from offline.engines.local.transformers import TransformersEngine
    from offline.runs.progress import Reporter

CHECK_FILE = "check.json"
_STEPS = 16
_PROBE_TOKENS = 64
# Limits on |log-probability difference|. float32: both sides sum the same products in another
# order. bfloat16: a token whose two best experts nearly tie may be routed otherwise, so a single
# token can differ much while the typical one cannot (measured: docs/parity.md).
_MEAN_LIMIT = {"float32": 2e-3, "bfloat16": 5e-2}
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


@dataclass(frozen=True, slots=True)
class Answer:
    """Greedy tokens from the server with their log-probabilities."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


def check(
    folder: Path,
    base: Path | None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    log: Path,
    reporter: Reporter | None = None,
) -> CheckResult:
    """Serve a pruned model with vLLM and verify it; needs vLLM, transformers and torch.

    The reference is loaded when the server has ended, so that one device has room for both.

    :param folder: a plain or compact checkpoint, or a routing map (then ``base`` is served)
    :param device: of the reference; ``auto`` takes a GPU where there is one
    :raises PruneError: if it cannot be served, or a compact one comes without its base
    """
    check_device(device)
    inputs = _inputs(folder, base, dtype)
    if reporter is not None:
        reporter.stage("serving with vLLM and comparing with transformers", 1)
    complete(Path(inputs.spec.model))
    complete(inputs.reference)
    from transformers import AutoTokenizer

    from offline.engines.local.transformers import TransformersEngine

    place = pick_device(device)
    tokenizer = AutoTokenizer.from_pretrained(inputs.reference, local_files_only=True)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    with Server(inputs.spec, log=log) as server:
        answers = [_complete(server, prompt, _PROBE_TOKENS) for prompt in prompts]
        chats = [_chat(server, prompt) for prompt in CHAT_PROMPTS]
        startup = server.startup_seconds
    given: Any = inputs.dtype
    engine = TransformersEngine(inputs.reference, device=place, dtype=given)
    looping = [repetition(answer.tokens) for answer in answers]
    before = _base_repetition(engine, prompts) if inputs.routing_map else None
    engine.apply(inputs.routing_map)
    items = (
        *_parity(engine, prompts, answers, inputs.dtype),
        _collapse(looping, before),
        *_endpoint(answers, chats),
    )
    there = snapshot_of(folder)
    name = there.repo_id if there else folder.name
    return CheckResult(name, inputs.spec.load_format, startup, items)


def check_free(folder: Path, log: Path) -> None:
    """Refuse, before any work, to write over what is neither a result of `save` nor a log.

    :raises PruneError: naming the file
    """
    fields = read_json(folder / CHECK_FILE)
    ours = isinstance(fields, dict) and {"checks", "served_as"} <= fields.keys()
    if (folder / CHECK_FILE).exists() and not ours:
        refuse_foreign(folder / CHECK_FILE)
    if log.exists():
        with log.open("rb") as stream:
            begin = stream.read(1 << 16)
        if begin and b"vllm" not in begin.lower():  # which every log of a server names
            refuse_foreign(log)


def save(result: CheckResult, folder: Path) -> None:
    """Write the result beside the model, for the report."""
    write_atomic(folder / CHECK_FILE, json.dumps(result.to_json(), indent=1) + "\n")


def _inputs(folder: Path, base: Path | None, dtype: str) -> CheckInputs:
    """Say what is served and what it is compared with; imports no torch."""
    has_map = (folder / MAP_FILE).exists()
    routing_map = RoutingMap.load(folder) if has_map else None
    is_map_only = has_map and not (folder / "config.json").exists()
    is_compact = (folder / COMPACT_FOLDER).is_dir()
    if (is_map_only or is_compact) and base is None:
        kind = "routing map" if is_map_only else "compact checkpoint"
        name = snapshot_of(folder) or folder
        raise PruneError(f"{name} is a {kind}", hint="add --base with the model it was made for")
    checkpoint = Checkpoint.open(base or folder)
    check_vllm()
    check_whole(base or folder)
    check_unquantised(base or folder)
    check_tokenizer(base or folder)
    if base is not None and routing_map is not None:
        routing_map.check_base(checkpoint.fingerprint(), checkpoint.expert_counts())
    if dtype == "auto":
        dtype = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype"))
    if dtype not in _MEAN_LIMIT:
        raise PruneError(f"no parity limit is known for {dtype}", hint="add --dtype float32")
    spec = ServerSpec(
        model=base if is_map_only and base else folder,
        load_format="pruned_moe" if is_map_only or is_compact else "auto",
        dtype=dtype,
        max_model_len=512,
        enforce_eager=True,
        loader_extra_config={"routing_map": str(folder)} if is_map_only else None,
    )
    return CheckInputs(folder, spec, base or folder, routing_map if base else None, dtype)


def _post(server: Server, path: str, body: dict[str, Any]) -> Any:
    import httpx

    body = {"model": server.model_name, "temperature": 0, **body}
    try:
        # trust_env would send requests to this machine through a proxy
        reply = httpx.post(f"{server.url}{path}", json=body, timeout=600, trust_env=False)
        reply.raise_for_status()
    except httpx.HTTPError as error:
        raise PruneError(f"the server did not answer {path}: {error}") from None
    return reply.json()["choices"][0]


def _complete(server: Server, prompt: Sequence[int], count: int) -> Answer:
    options = {"logprobs": 1, "return_tokens_as_token_ids": True}
    body = {"prompt": list(prompt), "max_tokens": count, **options}
    logprobs = _post(server, "/v1/completions", body)["logprobs"]
    tokens = tuple(int(token.removeprefix("token_id:")) for token in logprobs["tokens"])
    return Answer(tokens, tuple(float(value) for value in logprobs["token_logprobs"]))


def _chat(server: Server, prompt: str) -> str:
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": _PROBE_TOKENS}
    return str(_post(server, "/v1/chat/completions", body)["message"]["content"] or "")


def _parity(
    engine: TransformersEngine, prompts: list[list[int]], answers: list[Answer], dtype: str
) -> tuple[CheckItem, ...]:
    """Compare log-probabilities of the server's tokens, and whose token is the likeliest."""
    differences, agreed, total = [], 0, 0
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = answer.tokens[:_STEPS]
        logits = engine.logits([prompt + list(tokens)])[0, len(prompt) - 1 : -1]
        reference = logits.log_softmax(dim=-1)
        for step, token in enumerate(tokens):
            differences.append(abs(float(reference[step, token]) - answer.logprobs[step]))
            agreed += int(reference[step].argmax()) == token
            total += 1
    mean, worst = statistics.fmean(differences), max(differences)
    limit = _MEAN_LIMIT[dtype]
    share = agreed / total
    least = 0.99 if dtype == "float32" else 0.9
    return (
        CheckItem(
            "parity of log-probabilities",
            mean <= limit,
            mean,
            limit,
            f"mean difference to transformers over {total} tokens in {dtype}, largest {worst:.2g}",
        ),
        CheckItem("parity of greedy tokens", share >= least, share, least, "share that agrees"),
    )


def _base_repetition(engine: TransformersEngine, prompts: list[list[int]]) -> float:
    engine.apply(None)
    answers = engine.greedy(prompts, _PROBE_TOKENS)
    return statistics.fmean(repetition(answer.token_ids) for answer in answers)


def _collapse(looping: list[float], before: float | None) -> CheckItem:
    mean = statistics.fmean(looping)
    limit = _MAX_REPETITION if before is None else max(_MAX_REPETITION, before + _MORE_THAN_BASE)
    known = "" if before is None else f"; the base repeats {before:.2f}"
    detail = f"share of repeated 4-grams in greedy text{known}"
    return CheckItem("no repetition collapse", mean <= limit, mean, limit, detail)


def _endpoint(answers: list[Answer], chats: list[str]) -> tuple[CheckItem, ...]:
    empty = sum(not chat.strip() for chat in chats) + sum(not a.tokens for a in answers)
    broken = sum(not math.isfinite(value) for a in answers for value in a.logprobs)
    example = " ".join(chats[0].split())[:120]
    return (
        CheckItem("answers are not empty", empty == 0, empty, 0, f"chat says: {example}"),
        CheckItem("log-probabilities are finite", broken == 0, broken, 0, "of all probed tokens"),
    )
