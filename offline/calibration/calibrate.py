"""One calibration pass: text in, the statistics of every layer and expert out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from offline.calibration.accumulate import LayerAccumulator
from offline.calibration.corpus import Domain
from offline.calibration.gradients import (
    enter_backwards,
    fused_weights,
    gate_weight,
    matrices_of,
    step_back,
)
from offline.calibration.hidden import HiddenStates
from offline.calibration.memory import files_needed
from offline.calibration.outliers import RecordedOutputs
from offline.calibration.recorded import RecordedLayer
from offline.calibration.scores import Scores
from offline.calibration.statistics import LayerStatistics, WeightStatistics
from offline.calibration.walk import Walk, batches_of, by_domain
from offline.calibration.watch import watching
from offline.calibration.weights import gradient_statistics, weight_statistics
from offline.engines.local.experts import LayerControl
from offline.engines.local.offload import resident, trim
from offline.maps.moe_shape import MoeShape, incomplete_of
from offline.maps.router_groups import RouterGroups
from vllm_moe_prune.checkpoint import Checkpoint, read_config
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import Provenance

if TYPE_CHECKING:
    from offline.engines.local.transformers import TransformersEngine
    from offline.runs.progress import Reporter


def calibrate(
    engine: TransformersEngine,
    corpora: Sequence[Domain],
    *,
    gradients: bool = False,
    scratch: Path | None = None,
    reporter: Reporter | None = None,
    provenance: Provenance | None = None,
) -> Scores:
    """Take all text through the model, layer by layer, and keep what each layer showed.

    A map applied to the engine is scored as it is: experts keep the base's ids, dropped ones see
    no token, and router scores are the base's over all E.

    :param gradients: also the gradients of the experts' weights, for about one more forward and
        backward pass
    :param scratch: folder for the hidden states of all tokens, of every layer with ``gradients``;
        the system's temporary folder if not given
    :param provenance: of the scores; the data's identity and the time if not given
    :raises PruneError: if the map applied merges or substitutes experts, a sequence is longer than
        the model can take, or the disk for hidden states is too small
    """
    _check(engine, corpora)
    top_k = _top_k_by_layer(engine)
    batches = batches_of(corpora, engine.tokens_per_batch, engine.model.device)
    router = RouterGroups.of(engine.layout, read_config(engine.folder))
    with tempfile.TemporaryDirectory(prefix="vmprune-", dir=scratch) as folder:
        walk = Walk(engine.model, batches, Path(folder))
        one = _Pass(walk, engine.layers, top_k, gradients, reporter)
        one.check_space()
        one.run()
    layers = next(iter(one.found.values()))
    shape = MoeShape(
        model_type=engine.layout.model_type,
        base=engine.fingerprint,
        num_experts={number: seen.num_experts for number, seen in layers.items()},
        top_k=top_k,
        num_groups=router.count,
        topk_group=router.active,
        slices=engine.layout.slices,
        mappable=engine.layout.mappable,
        incomplete=incomplete_of(Checkpoint.open(engine.folder)),
    )
    return Scores(
        shape=shape,
        domains=one.found,
        weights=one.weights,
        provenance=provenance
        or Provenance.now("score", data=tuple(domain.identity for domain in corpora)),
        sequences={domain.name: len(domain.token_ids) for domain in corpora},
    )


def _check(engine: TransformersEngine, corpora: Sequence[Domain]) -> None:
    entries = engine.applied.layers if engine.applied else ()
    if any(entry.experts.kept is None or entry.substituted for entry in entries):
        raise PruneError(
            "the routing map applied merges or substitutes experts, so there are no single ones to "
            "score",
            hint="build the merged checkpoint and score that",
        )
    assert corpora, "no text"
    longest = max(domain.token_ids.shape[1] for domain in corpora)
    if longest > engine.max_length:
        raise PruneError(
            f"--length {longest}: the model takes at most {engine.max_length} tokens",
            hint=f"--length {engine.max_length} or less",
        )


def _top_k_by_layer(engine: TransformersEngine) -> dict[int, int]:
    """Return decoder layer -> k, as the map applied has it or the base."""
    top_k = dict.fromkeys(engine.layers, engine.top_k)
    if engine.applied is not None:
        top_k |= {entry.layer: entry.top_k for entry in engine.applied.layers}
    return top_k


@dataclass(slots=True)
class _Pass:
    """One pass under way."""

    walk: Walk
    controls: Mapping[int, LayerControl]
    top_k: Mapping[int, int]
    gradients: bool
    reporter: Reporter | None
    found: dict[str, dict[int, LayerStatistics]] = field(default_factory=dict)
    weights: dict[int, WeightStatistics] = field(default_factory=dict)
    inputs: list[HiddenStates] = field(default_factory=list)  # of each layer, if still needed

    def check_space(self) -> None:
        """Refuse to begin where hidden states and outputs of experts will not fit on the disk."""
        files = files_needed(len(self.walk.layers), gradients=self.gradients)
        domains = (self.walk.bytes_of(batches) for _, batches in by_domain(self.walk.batches))
        needed = files * self.walk.bytes_of(self.walk.batches)
        needed += max(self.top_k.values()) * max(domains)
        free = shutil.disk_usage(self.walk.folder).free
        if needed > free:
            raise PruneError(
                f"the hidden states and outputs need {needed / 1024**3:.1f} GiB on the disk of "
                f"{self.walk.folder.parent}, which has {free / 1024**3:.1f} GiB free",
                hint="choose another --scratch, or fewer or shorter sequences",
            )

    def run(self) -> None:
        """Walk forwards, and backwards where gradients are wanted."""
        with ExitStack() as files:
            self._stage("calibrating")
            self.inputs.append(files.enter_context(closing(self.walk.file("hidden-0"))))
            self.walk.enter(self.inputs[0])
            for number, layer in enumerate(self.walk.layers):
                if self.gradients:
                    file = self.walk.file(f"hidden-{number + 1}")
                    self.inputs.append(files.enter_context(closing(file)))
                with resident(layer), torch.no_grad():
                    self._forwards(number)
                self._step()
            if self.gradients:
                self._stage("gradients")
                gradients = files.enter_context(closing(self.walk.file("gradients")))
                self._all_backwards(gradients)

    def _forwards(self, number: int) -> None:
        """Take all batches through one layer; outputs replace inputs that no one needs again."""
        inputs = self.inputs[number if self.gradients else 0]
        control = self.controls.get(number)
        if control is None:
            self.walk.step(number, self.walk.batches, inputs, self.inputs[-1])
            return
        self.weights[number] = weight_statistics(
            gate_weight(control), matrices_of(control, fused_weights(control))
        )
        with watching(control) as watch, closing(RecordedOutputs(self.walk.folder)) as recorded:
            for domain, batches in by_domain(self.walk.batches):
                watch.accumulator = seen = self._accumulator(control, recorded)
                self.walk.step(number, batches, inputs, self.inputs[-1], before=watch.expect)
                self.found.setdefault(domain, {})[number] = self._finish(seen, number)
                trim()

    def _accumulator(self, control: LayerControl, recorded: RecordedOutputs) -> RecordedLayer:
        vocab = len(self.walk.model.get_input_embeddings().weight)
        sums = LayerAccumulator(control.num_experts, control.width, vocab, device=control.device)
        return RecordedLayer(sums, recorded)

    def _finish(self, seen: RecordedLayer, number: int) -> LayerStatistics:
        statistics = seen.finish(number)
        assigned = statistics.counts.sum()
        assert statistics.tokens > 0, f"layer {number} saw no token"
        assert assigned == statistics.tokens * self.top_k[number], (number, assigned)
        return statistics

    def _all_backwards(self, gradients: HiddenStates) -> None:
        enter_backwards(self.walk, self.inputs[-1], gradients)
        last, first = len(self.walk.layers) - 1, min(self.controls)
        self._step(first)  # layers below the first experts need no gradient
        for number in range(last, first - 1, -1):
            control = self.controls.get(number)
            with resident(self.walk.layers[number]):
                for domain, batches in by_domain(self.walk.batches):
                    sums = step_back(
                        self.walk, number, batches, self.inputs[number], gradients, control
                    )
                    if control is not None:
                        gradient = gradient_statistics(matrices_of(control, sums))
                        layers = self.found[domain]
                        layers[number] = replace(layers[number], gradient=gradient)
                    trim()
            self._step()

    def _stage(self, title: str) -> None:
        if self.reporter is not None:
            self.reporter.stage(title, len(self.walk.layers))

    def _step(self, amount: int = 1) -> None:
        if self.reporter is not None:
            self.reporter.step(amount, note="layers")
