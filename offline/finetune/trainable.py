"""Which parameters of a loaded model a finetune trains."""

from __future__ import annotations

from typing import Any

import torch

from offline.engines.local.experts import find_layers
from offline.finetune.settings import FinetuneSettings
from vllm_moe_prune.layout import MoeLayout


def prepare(
    model: torch.nn.Module, layout: MoeLayout, settings: FinetuneSettings, seed: int
) -> Any:
    """Make exactly the chosen parameters require gradients; the others are frozen.

    Routers and experts are found by where they are in the decoder, in every family alike.

    :param seed: of LoRA's random matrices
    :returns: the model, or with ``lora`` the one with adapters around it (see `with_adapters`)
    :raises PruneError: if the model holds its experts in an unknown way
    """
    if settings.trainable == "lora":
        return with_adapters(model, settings, seed)
    if settings.trainable == "all":
        model.requires_grad_(True)
        return model
    model.requires_grad_(False)
    for control in find_layers(model, layout).values():
        control.router.requires_grad_(True)
        if settings.trainable == "router+experts":
            control.experts.requires_grad_(True)
    return model


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters that require gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def with_adapters(model: torch.nn.Module, settings: FinetuneSettings, seed: int) -> Any:
    """Put LoRA adapters beside every weight matrix of the decoder's layers, through peft.

    These are the attention's projections, the routers, the fused experts [E, 2I, D] and [E, D, I],
    where each expert has an adapter of its own, and what else there is (shared experts, layers
    without experts). Embedding, head, norms and biases have none.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=0.0,
        bias="none",
        # As parameters, also those of linear modules: peft takes names of modules for those of
        # the unfused experts that transformers had before, and targets something else.
        target_modules=[],
        target_parameters=[
            name
            for name, parameter in model.named_parameters()
            if ".layers." in name and parameter.dim() > 1
        ],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def merged(model: Any) -> Any:
    """Return the plain model with the adapters added to its weights."""
    return model.merge_and_unload()
