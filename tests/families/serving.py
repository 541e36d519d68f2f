"""What vLLM's CPU build needs, or cannot do, for the families in `tests.families.models`."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

FLOAT32_LIMIT = 2e-3


@dataclass(frozen=True, slots=True)
class Serving:
    """How a family's tiny model is served in the tests.

    :param arguments: of `vllm.LLM`
    :param limit: largest difference of a log-probability, the base's noise in this dtype included
    :param model: what `make_family` is asked for beside the family's own config
    :param refused: what vLLM says where it cannot run the family on a CPU
    :param note: for readers of docs/families.md
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    limit: float = FLOAT32_LIMIT
    model: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    note: str = ""


_MLA = Serving(
    {"attention_backend": "CPU_MLA", "compilation_config": {"custom_ops": ["-rotary_embedding"]}},
    note="vLLM's CPU kernel for rotary embeddings is wrong for MLA (the base's log-probabilities "
    "are off by 3); with PyTorch's it is right: "
    """`--compilation-config '{"custom_ops": ["-rotary_embedding"]}'`""",
)
_DELTA = Serving({"dtype": "bfloat16"}, 0.15, note="bfloat16 only on a CPU; compared in it")
SERVING: dict[str, Serving] = {
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA,
    "ernie4_5_moe": Serving(
        model={"correction": 0.0},
        note="vLLM's CPU router ignores the correction bias, of the base too: tested with a bias "
        "of zero",
    ),
    "llama4": Serving(
        {"limit_mm_per_prompt": {"image": 0}},
        note="vLLM reads images with torchvision, which its CPU build does not bring along, and "
        "refuses the model without it, the base too",
    ),
    "phimoe": Serving(
        note="vLLM does not add the bias of Phi-MoE's output head, of the base too: tested with a "
        "bias of zero"
    ),
    "glm4_moe_lite": _MLA,
    "qwen3_5_moe": _DELTA,
    "qwen3_5_moe_text": _DELTA,
    "qwen3_next": _DELTA,
}


# vLLM 0.30's CPU attention does not take gpt-oss's sinks in float32, in any form.
_SINKS = Serving(refused="expected scalar type BFloat16 but found Float")
_IMAGES = Serving(refused=r"\['\w+'\] failed to be inspected")


def serving_of(family: str) -> Serving:
    """Return how a family is served by the installed vLLM."""
    from vllm.version import __version_tuple__ as installed

    if family == "gpt_oss" and installed < (0, 31):
        return _SINKS
    if family in ("llama4", "qwen3_5_moe", "qwen3_5_moe_text") and find_spec("torchvision") is None:
        return _IMAGES
    return SERVING.get(family, Serving())
