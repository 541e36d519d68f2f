"""A forward pass that takes all text through one layer before the next layer is touched.

So only one layer's statistics (and gradients, and weights where they are offloaded) are in memory
at a time; hidden states wait in files. The layers and what they are given are the model's own, so
the result is that of a plain forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offline.calibration.corpus import Domain
from offline.calibration.hidden import HiddenStates
from offline.engines.local.experts import decoder_of
from vllm_moe_prune.errors import PruneError

Forward = Callable[..., Any]
_Given = tuple[tuple[Any, ...], dict[str, Any]]  # beside hidden states: in order, and by name
_OTHERWISE = "--engine vllm, if vLLM runs the model"
_HANDED_ON = "prev_topk_indices"  # of GLM-5: what layers let later ones attend to


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Some sequences of one domain; ``number`` counts batches over all domains."""

    number: int
    domain: str
    token_ids: torch.Tensor  # [B, L]


def batches_of(
    domains: Sequence[Domain], tokens_per_batch: int, device: torch.device | str = "cpu"
) -> list[TextBatch]:
    """Cut domains, one after the other, into batches of whole sequences, at least one each.

    :param device: where their tokens are kept
    """
    batches: list[TextBatch] = []
    for domain in domains:
        size = max(1, tokens_per_batch // domain.token_ids.shape[1])
        for rows in torch.split(torch.from_numpy(domain.token_ids).to(device), size):
            batches.append(TextBatch(len(batches), domain.name, rows))
    return batches


def by_domain(batches: Sequence[TextBatch]) -> Iterator[tuple[str, list[TextBatch]]]:
    """Yield each domain with its batches."""
    for name, group in groupby(batches, key=lambda batch: batch.domain):
        yield name, list(group)


@dataclass(slots=True)
class Walk:
    """A model, the text that walks through it, and the folder for what waits between layers.

    :param model: a causal language model of transformers
    """

    model: Any
    batches: Sequence[TextBatch]
    folder: Path
    _given: dict[tuple[torch.Size, int], _Given] = field(default_factory=dict)

    @property
    def layers(self) -> Sequence[torch.nn.Module]:
        """Return the decoder layers, with experts or without."""
        layers: Sequence[torch.nn.Module] = decoder_of(self.model).layers
        return layers

    @property
    def device(self) -> torch.device:
        """Where the model begins; its layers may be on several devices."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def device_of(self, number: int) -> torch.device:
        """Return where a decoder layer computes."""
        return next(self.layers[number].parameters()).device

    def bytes_of(self, batches: Sequence[TextBatch]) -> int:
        """Return the bytes of the hidden states of some batches at one place of the model."""
        embedding = self.model.get_input_embeddings().weight  # [V, D]
        width: int = embedding.shape[1] * embedding.element_size()
        return sum(batch.token_ids.numel() for batch in batches) * width

    def file(self, name: str) -> HiddenStates:
        """Make a file with room for the hidden states of all batches."""
        embedding = self.model.get_input_embeddings().weight
        shapes = [(*batch.token_ids.shape, embedding.shape[1]) for batch in self.batches]
        return HiddenStates(self.folder / name, shapes, embedding.dtype)

    @torch.no_grad()
    def enter(self, into: HiddenStates) -> None:
        """Write the inputs of the first layer, and note what else each layer is given.

        That (positions, masks) depends on a batch's shape alone, as there is no padding.
        """
        decoder = decoder_of(self.model)
        for batch in self.batches:
            with _replaced_forwards(self.layers, self._note) as seen:
                decoder(input_ids=batch.token_ids.to(self.device), use_cache=False)
            if seen[0].shape != into.shape(batch.number):
                raise PruneError(
                    "the layers of this model hand on more than one stream: not to be taken one "
                    "by one",
                    hint=_OTHERWISE,
                )
            into.write(batch.number, seen[0])

    def _note(self, number: int, hidden: torch.Tensor, given: _Given) -> None:
        more, named = given
        if named.get("input_ids") is not None or any(isinstance(one, Tensor) for one in more):
            raise PruneError(
                "the layers of this model are given the tokens, too: not to be taken one by one",
                hint=_OTHERWISE,
            )
        if _HANDED_ON in named:
            named = {**named, _HANDED_ON: self._all_positions(hidden)}
        self._given.setdefault((hidden.shape[:2], number), (more, named))

    def _all_positions(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what a layer chooses to attend to, [B, L, L], where it has to choose all."""
        rows, length = hidden.shape[:2]
        most = int(self.model.config.get_text_config().index_topk)
        if length > most:
            raise PruneError(
                f"--length {length}: layers of this model attend to {most} tokens, which other "
                "layers choose",
                hint=f"--length {most} or less",
            )
        return torch.arange(length, device=hidden.device).expand(rows, length, length)

    def run(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """Return the output [B, L, D] of decoder layer ``number`` for its input [B, L, D]."""
        more, given = self._given[hidden.shape[:2], number]
        output = self.layers[number](hidden, *more, **given)
        first: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return first

    def step(
        self,
        number: int,
        batches: Sequence[TextBatch],
        inputs: HiddenStates,
        outputs: HiddenStates,
        before: Callable[[TextBatch], None] = lambda _: None,
    ) -> None:
        """Take some batches through decoder layer ``number``, from file to file (or the same).

        :param before: called with each batch before it goes
        """
        for batch in batches:
            before(batch)
            output = self.run(number, inputs.read(batch.number, self.device_of(number)))
            outputs.write(batch.number, output)


@contextmanager
def _replaced_forwards(
    layers: Sequence[torch.nn.Module], note: Callable[[int, torch.Tensor, _Given], None]
) -> Iterator[list[torch.Tensor]]:
    """Let layers pass on what they are given; gives the list that the first one's input joins."""
    seen: list[torch.Tensor] = []

    def passing(number: int) -> Forward:
        def forward(hidden_states: torch.Tensor, *more: Any, **given: Any) -> Any:
            if number == 0:
                seen.append(hidden_states)
            note(number, hidden_states, (more, given))
            return (hidden_states, None) if _HANDED_ON in given else hidden_states

        return forward

    own = [layer.__dict__.get("forward") for layer in layers]  # set where accelerate has hooks
    for number, layer in enumerate(layers):
        layer.forward = passing(number)
    try:
        yield seen
    finally:
        for layer, forward in zip(layers, own, strict=True):
            restore_forward(layer, forward)


def restore_forward(module: torch.nn.Module, forward: Forward | None) -> None:
    """Undo the setting of ``module.forward``: to the instance's own, or the class's if None."""
    if forward is None:
        del module.forward
    else:
        module.forward = forward
