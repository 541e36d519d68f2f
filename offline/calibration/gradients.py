"""Gradients of the experts' weights, one layer at a time: backpropagation from file to file.

The forward walk left every layer's input. From the last layer to the first, each layer is computed
once more with its graph, takes the gradient of its output from a file and leaves that of its
input in the same place. No optimizer, and never more than one layer's gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from offline.calibration.hidden import HiddenStates
from offline.calibration.walk import TextBatch, Walk
from offline.engines.local.experts import LayerControl, decoder_of

_CHUNK = 512  # positions whose logits over the vocabulary are in memory at the same time
Matrices = tuple[torch.Tensor, ...]  # of one expert, with the hidden dimension last


def enter_backwards(walk: Walk, last: HiddenStates, into: HiddenStates) -> float:
    """Write the loss's gradient with respect to the last layer's outputs.

    The loss is the cross-entropy of every next token, in nats, summed over all tokens.

    :param last: outputs of the last layer
    :returns: the loss
    """
    loss = 0.0
    for batch in walk.batches:
        hidden = last.read(batch.number, walk.device)  # [B, L, D]
        gradient = torch.zeros_like(hidden)  # and zero it stays at the last position
        targets = batch.token_ids[:, 1:].to(walk.device)
        size = max(1, _CHUNK // len(hidden))
        for begin in range(0, targets.shape[1], size):
            part = slice(begin, min(begin + size, targets.shape[1]))
            value, gradient[:, part] = _head(walk.model, hidden[:, part], targets[:, part])
            loss += value
        into.write(batch.number, gradient)
    return loss


def _head(model: Any, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return the loss of targets [B, l] and its gradient with respect to ``hidden`` [B, l, D]."""
    hidden = hidden.detach().requires_grad_()
    logits = _logits(model, hidden)
    precise = logits if logits.dtype == torch.float64 else logits.float()
    loss = torch.nn.functional.cross_entropy(
        precise.flatten(0, 1), targets.flatten().to(precise.device), reduction="sum"
    )
    (gradient,) = torch.autograd.grad(loss, hidden)
    return float(loss.detach()), gradient


_LAST_NORMS = ("norm", "norm_f", "final_layernorm", "embedding_norm")


def _logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return what a model makes of its last layer's output [B, l, D], [B, l, V]."""
    decoder, config = decoder_of(model), model.config.get_text_config()
    norm = next(getattr(decoder, name) for name in _LAST_NORMS if hasattr(decoder, name))
    logits: torch.Tensor = model.get_output_embeddings()(norm(hidden))
    logits = logits / getattr(config, "logits_scaling", 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def step_back(
    walk: Walk,
    number: int,
    batches: Sequence[TextBatch],
    inputs: HiddenStates,
    gradients: HiddenStates,
    control: LayerControl | None,
) -> Matrices:
    """Take some batches through decoder layer ``number`` backwards.

    :param inputs: inputs of this layer
    :param gradients: with respect to its outputs; afterwards with respect to its inputs
    :param control: of the layer's experts, None if it has none
    :returns: gradients of the fused weights, summed over the batches, in float32 at least
    """
    weights = () if control is None else fused_weights(control)
    sums = tuple(torch.zeros_like(w, dtype=_wide(w.dtype)) for w in weights)
    with _learning(weights):
        for batch in batches:
            hidden = inputs.read(batch.number, walk.device_of(number)).requires_grad_()
            output = walk.run(number, hidden)
            upstream = gradients.read(batch.number, output.device)
            found = torch.autograd.grad(output, (hidden, *weights), upstream)
            gradients.write(batch.number, found[0])
            for total, part in zip(sums, found[1:], strict=True):
                total += part
    return tuple(total.detach() for total in sums)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@contextmanager
def _learning(weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """Let weights ask for their gradients for a while."""
    asked = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_()
    try:
        yield
    finally:
        for weight, before in zip(weights, asked, strict=True):
            weight.requires_grad_(before)


def fused_weights(control: LayerControl) -> Matrices:
    """Return the two tensors of a layer's experts, as they are laid out."""
    return control.fused


def matrices_of(control: LayerControl, fused: Matrices) -> Iterator[Matrices]:
    """Yield each expert's matrices from the fused weights of a layer, or from their gradients."""
    return expert_matrices(
        *fused, transposed=control.is_transposed, interleaved=control.is_interleaved
    )


def gate_weight(control: LayerControl) -> torch.Tensor:
    """Return the router's gate of a layer, [E, D]."""
    return control.adapter.gate_of(control.router)


def expert_matrices(
    gate_up: torch.Tensor,
    down: torch.Tensor,
    *,
    transposed: bool = False,
    interleaved: bool = False,
) -> Iterator[Matrices]:
    """Yield each expert's gate, where it has any, up and transposed down matrix, [I, D] each.

    :param gate_up: [E, 2I, D], or transposed [E, D, 2I]; [E, I, D] where nothing gates
    :param down: [E, D, I], or transposed [E, I, D]
    :param interleaved: gate and up take turns along 2I; otherwise up follows gate
    """
    if transposed:
        gate_up, down = gate_up.mT, down.mT
    assert gate_up.shape[2] == down.shape[1], "fused experts of another orientation"
    for one, other in zip(gate_up.detach(), down.detach(), strict=True):
        if one.shape[0] == other.shape[1]:
            yield one, other.T
            continue
        gate, up = (one[::2], one[1::2]) if interleaved else one.chunk(2)
        yield gate, up, other.T
