"""What runs inside vLLM's worker: switches the experts and answers from hidden states.

vLLM adds the methods of `LiveWorker` to its worker class; `VllmEngine` calls them by name. In
tensor parallel each worker holds a shard of every expert and does the same; answers are those of
the first worker, which alone has logits.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import psutil
import torch
from safetensors.numpy import load
from safetensors.torch import save

from offline.engines.local.reading import read_rows
from vllm_moe_prune.live import LiveLayer
from vllm_moe_prune.reading import parse_json, validated
from vllm_moe_prune.routing_map import RoutingMap
from vllm_moe_prune.vllm_compat.live_layers import is_quantised, live_layers, run_eagerly
from vllm_moe_prune.vllm_compat.steps import PromptRows, observe_steps

_CHUNK = 256  # positions whose logits are in float32 at the same time
READ = ("own", "greatest", "tokens", "listed")  # what `read_rows` gives, in its order


class LiveWorker:
    """Extension of vLLM's worker (``worker_extension_cls``); names must not be vLLM's own."""

    model_runner: Any
    moe_state: LiveState

    def moe_attach(self, client: int) -> dict[str, Any]:
        """Find the layers and begin to listen; ends this process when process ``client`` ends."""
        if client != os.getpid():
            threading.Thread(target=end_with, args=(client,), daemon=True).start()
        self.moe_state = LiveState(self.model_runner.get_model())
        observe_steps(self.model_runner, self.moe_state.observe)
        layers = self.moe_state.layers
        return {
            "experts": [[n, layer.routing.num_experts] for n, layer in layers.items()],
            "quantised": any(is_quantised(layer.experts.module) for layer in layers.values()),
            "fixed": any(layer.routing.choice.own is not None for layer in layers.values()),
        }

    def moe_apply(self, fields: str | None, matrices: bytes) -> int:
        """Behave as a routing map says.

        :param fields: its JSON, None for the base
        :param matrices: its matrices in safetensors form, may be empty
        :returns: bytes of pristine copies that this worker holds
        """
        arrays = load(matrices) if matrices else {}
        routing_map = None
        if fields is not None:
            routing_map = validated(parse_json(fields, "a map"), RoutingMap, "a map")
            routing_map = RoutingMap.build(matrices=arrays, **dict(routing_map))
        layers = self.moe_state.layers
        for number, layer in layers.items():
            layer.set(routing_map, number)
        return sum(layer.experts.pristine_bytes for layer in layers.values())

    def moe_scores(self) -> tuple[list[int], list[float], list[bool]]:
        """Hand over (slots, log-probabilities in nats, whether greedy) since the last call."""
        found, self.moe_state.scores = self.moe_state.scores, {}
        return (
            list(found),
            [log_prob for log_prob, _ in found.values()],
            [greedy for _, greedy in found.values()],
        )

    def moe_agreements(self) -> list[tuple[int, float]]:
        """Hand over (text, mean over its positions of sum_v min(p_v, q_v)) since the last call."""
        found, self.moe_state.agreements = self.moe_state.agreements, {}
        return [(text, float(values.double().mean())) for text, values in found.items()]

    def moe_read(self, count: int, wanted: bytes) -> None:
        """Say what the texts that are read next list at each place.

        :param count: so many of the likeliest tokens
        :param wanted: or these: text -> tokens [L, K] in safetensors form; empty for none
        """
        self.moe_state.count = count
        found = load(wanted) if wanted else {}
        self.moe_state.wanted = {int(name): torch.from_numpy(ids) for name, ids in found.items()}

    def moe_readings(self) -> bytes:
        """Hand over what texts said since the last call: "TEXT.NAME" -> values [L, ...], with the
        names of `READ`, in safetensors form."""
        found, self.moe_state.reads = self.moe_state.reads, {}
        return save(
            {f"{n}.{key}": part for n, parts in found.items() for key, part in parts.items()}
        )

    def moe_watch(self, watching: bool) -> list[tuple[int, list[int], list[float]]]:
        """Begin or end to watch the routers.

        :returns: layer, tokens per expert [E], summed scores per expert [E] since watching began
        """
        state = self.moe_state
        run_eagerly(self.model_runner, eagerly=watching)
        for layer in state.layers.values():
            layer.routing.watching, layer.routing.seen = watching, None
        found, state.use, state.counted = state.use, {}, {}
        return [(n, counts.tolist(), sums.tolist()) for n, (counts, sums) in found.items()]

    def moe_fingerprint(self) -> list[str]:
        """Return a hash of the stored experts of each layer, in this worker."""
        return [layer.experts.digest() for layer in self.moe_state.layers.values()]


@dataclass(slots=True)
class LiveState:
    """The layers of a model, and the answers that were read off its hidden states so far.

    ``scores``: slot -> (log-probability, whether it is the greatest). ``base``: text -> final
    hidden states [L, D] under the base. ``agreements``: text -> acceptance [L] at each position.
    ``reads``: text -> what `read_rows` says of each position, ``count`` tokens or those ``wanted``.
    ``use``: layer -> (tokens [E], summed scores [E]). ``counted``: watched prompt -> first position
    not yet counted, as vLLM may compute a prompt again that it had put aside.
    """

    model: Any
    layers: dict[int, LiveLayer] = field(init=False)
    scores: dict[int, tuple[float, bool]] = field(default_factory=dict)
    base: dict[int, torch.Tensor] = field(default_factory=dict)
    agreements: dict[int, torch.Tensor] = field(default_factory=dict)
    count: int = 0
    wanted: dict[int, torch.Tensor] = field(default_factory=dict)
    reads: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    use: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    counted: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers = live_layers(self.model)

    def observe(self, rows: list[PromptRows], hidden: torch.Tensor) -> None:
        """Take from the hidden states [T, D] of one step what its requests ask for."""
        by_kind: dict[str, list[PromptRows]] = {}
        for row in rows:
            by_kind.setdefault(row.note["kind"], []).append(row)
        if found := by_kind.get("score"):
            self._score(found, hidden)
        for row in by_kind.get("remember", ()):
            self._remember(row, hidden)
        for row in by_kind.get("compare", ()):
            self._compare(row, hidden)
        for row in by_kind.get("read", ()):
            self._read(row, hidden)
        if found := by_kind.get("watch"):
            self._count(found)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Return the logits [K, V] of hidden states [K, D]; None but in the first worker."""
        return cast("torch.Tensor | None", self.model.compute_logits(hidden))

    def _score(self, rows: list[PromptRows], hidden: torch.Tensor) -> None:
        places: dict[int, int] = {}  # row of hidden -> its number among those wanted
        source, target, slots = [], [], []
        for row in rows:
            note = row.note
            entries = zip(note["positions"], note["tokens"], note["slots"], strict=True)
            for position, token, slot in entries:
                if row.start <= position < row.start + row.count:
                    at = row.offset + position - row.start
                    source.append(places.setdefault(at, len(places)))
                    target.append(token)
                    slots.append(slot)
        if not slots:
            return
        wanted = hidden[torch.tensor(list(places), device=hidden.device)]
        chosen, greatest, normaliser = self._gathered(wanted, source, target)
        for slot, log_prob, greedy in zip(
            slots, (chosen - normaliser).tolist(), (chosen == greatest).tolist(), strict=True
        ):
            self.scores[slot] = (log_prob, greedy)

    def _gathered(
        self, hidden: torch.Tensor, source: Sequence[int], target: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logit, greatest logit and log-normaliser [P] in float64 of each target."""
        sources, targets = torch.tensor(source), torch.tensor(target)
        result = torch.zeros(3, len(sources), dtype=torch.float64)
        for begin in range(0, len(hidden), _CHUNK):
            logits = self.logits(hidden[begin : begin + _CHUNK])
            if logits is None:
                continue
            here = (sources >= begin) & (sources < begin + _CHUNK)
            row = (sources[here] - begin).to(logits.device)
            result[0, here] = logits[row, targets[here].to(logits.device)].double().cpu()
            result[1, here] = logits.amax(dim=-1)[row].double().cpu()
            result[2, here] = logits.float().logsumexp(dim=-1)[row].double().cpu()
        return result[0], result[1], result[2]

    def _remember(self, row: PromptRows, hidden: torch.Tensor) -> None:
        text = row.note["text"]
        if text not in self.base:
            self.base[text] = torch.empty(row.prompt_length, hidden.shape[1], dtype=hidden.dtype)
        part = hidden[row.offset : row.offset + row.count]
        self.base[text][row.start : row.start + row.count] = part.cpu()

    def _compare(self, row: PromptRows, hidden: torch.Tensor) -> None:
        text, device = row.note["text"], hidden.device
        values = self.agreements.setdefault(text, torch.zeros(row.prompt_length))
        for begin in range(0, row.count, _CHUNK):
            end = min(begin + _CHUNK, row.count)
            q = self.logits(hidden[row.offset + begin : row.offset + end])
            base = self.base[text][row.start + begin : row.start + end]
            p = self.logits(base.to(device))
            if p is not None and q is not None:
                distance = (p.float().softmax(dim=-1) - q.float().softmax(dim=-1)).abs().sum(-1)
                # sum_v min(p, q), in a form that gives exactly 1 where p is q.
                values[row.start + begin : row.start + end] = 1 - distance.cpu() / 2

    def _read(self, row: PromptRows, hidden: torch.Tensor) -> None:
        text, asked = row.note["text"], self.wanted.get(row.note["text"])
        targets = torch.tensor(row.note["targets"])
        kept = self.reads.setdefault(text, {})
        for begin in range(0, row.count, _CHUNK):
            end = min(begin + _CHUNK, row.count)
            logits = self.logits(hidden[row.offset + begin : row.offset + end])
            if logits is None:
                continue
            part = slice(row.start + begin, row.start + end)
            found = read_rows(
                logits, targets[part], self.count, None if asked is None else asked[part]
            )
            for name, values in zip(READ, found, strict=True):
                if name not in kept:
                    shape = (row.prompt_length, *values.shape[1:])
                    kept[name] = torch.empty(shape, dtype=values.dtype)
                kept[name][part] = values.cpu()

    def _count(self, rows: list[PromptRows]) -> None:
        """Add what the routers chose for the rows that count."""
        kept = []
        for row in rows:
            number, end = row.note["number"], row.start + row.count
            begin = max(row.note["begin"], row.start, self.counted.get(number, 0))
            self.counted[number] = end
            kept.append(torch.arange(begin, max(begin, end)) + (row.offset - row.start))
        rows_kept = torch.cat(kept)
        for number, layer in self.layers.items():
            assert layer.routing.seen is not None
            scores, ids = (t[rows_kept.to(t.device)].cpu() for t in layer.routing.seen)
            experts = layer.routing.num_experts
            counts, sums = self.use.get(number, (torch.zeros(experts).long(), torch.zeros(experts)))
            counts = counts + torch.bincount(ids.flatten(), minlength=experts)
            self.use[number] = (counts, sums.double() + scores.double().sum(dim=0))


def end_with(client: int, interval: float = 1.0) -> None:
    """End this process once process ``client`` is gone, which may have been killed outright."""
    parent = os.getppid()
    while True:
        time.sleep(interval)
        if os.getppid() == parent and psutil.pid_exists(client):
            continue
        if parent != client and os.getppid() == parent:  # vLLM's engine core stands between
            os.kill(parent, 9)
        os._exit(1)
