"""What the entries of families are made of: forms that many share, and the kinds of entry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm_moe_prune.form import Form
from vllm_moe_prune.layout import MoeLayout

MLP, SPARSE, FORWARD = "mlp.", "block_sparse_moe.", "feed_forward."
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
MIXTRAL_PROJECTIONS = ("w1", "w3", "w2")
BIAS = "e_score_correction_bias"


def dense(block: str, projections: tuple[str, ...] = PROJECTIONS) -> tuple[str, ...]:
    """Return the names of a layer without experts."""
    return tuple(f"{block}{projection}." for projection in projections)


def one_by_one(
    block: str, gate: str = "gate.weight", projections: tuple[str, ...] = PROJECTIONS, **more: Any
) -> Form:
    """Return the form in which each expert has tensors of its own, ``experts.N.gate_proj.weight``.

    :param gate: the router's name in the block
    :param more: names of other fields, which begin with the block's
    """
    return Form(
        router=block + gate,
        blocks=(block,),
        expert=block + "experts.{expert}.{projection}.{part}",
        projections=projections,
        **more,
    )


def both(form: Form, **changes: Any) -> tuple[Form, Form]:
    """Return a form and the same block as transformers 5 has it: with stacked experts."""
    return form, form.in_transformers(**changes)


def wrapped(
    text: MoeLayout,
    model_type: str,
    stem: str = "model.language_model.",
    section: str = "text_config",
    **changes: Any,
) -> MoeLayout:
    """Return the layout of a checkpoint with a language model and more (pictures, sound).

    :param stem: what the names of the language model's layers begin with
    :param section: where config.json has its settings
    """
    return replace(
        text,
        model_type=model_type,
        layer=stem + "layers.{layer}.",
        # As `lm_head` is outside of the first and inside of the second.
        prefix=stem if stem == "model.language_model." else stem.removesuffix("model."),
        section=section,
        vllm_module=text.vllm_module or text.model_type.removesuffix("_text"),
        **changes,
    )
