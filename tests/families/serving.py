"""What vLLM's CPU build needs, or cannot do, for the families in `tests.families.models`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

FLOAT32_LIMIT = 2e-3


@dataclass(frozen=True, slots=True)
class Serving:
    """How a family's tiny model is served in the tests.

    :param arguments: of `vllm.LLM`
    :param limit: largest difference of a log-probability, the base's noise in this dtype included
    :param model: what `make_family` is asked for beside the family's own config
    :param refused: a part of what vLLM says where it cannot run the family on a CPU
    :param uncompact: a part of what is said where it runs what is plain only
    :param live: how the live engine is asked, where that is another way
    :param images: that vLLM wants torchvision for it
    :param note: for readers of docs/families.md
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    limit: float = FLOAT32_LIMIT
    model: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    uncompact: str | None = None
    live: Serving | None = None
    images: bool = False
    note: str = ""

    def refusal(self, form: str) -> str | None:
        """Return a part of what is said of a form, if it cannot be served."""
        return self.refused if form in ("plain", "scores") else self.refused or self.uncompact


_ROTARY = {"compilation_config": {"custom_ops": ["-rotary_embedding"]}}
_BY_PYTORCH = (
    """with PyTorch's it is right: `--compilation-config '{"custom_ops": ["-rotary_embedding"]}'`"""
)
_MLA = Serving(
    {"attention_backend": "CPU_MLA", **_ROTARY},
    note="vLLM's CPU kernel for rotary embeddings is wrong for MLA (the base's log-probabilities "
    f"are off by 3); {_BY_PYTORCH}",
)
# Rounding to bfloat16 moves the reference itself by up to 0.23 from float32, which numbers depends
# on the processor; a token that meets another expert moves them by 1 and more.
_DELTA = Serving({"dtype": "bfloat16"}, 0.3, note="bfloat16 only on a CPU; compared in it")
# Without the linear attention that a CPU computes in bfloat16 only.
_ATTENTION = {"layer_types": ["full_attention"] * 3}


def _text_only(base: Serving, *others: str) -> Serving:
    """Ask for no pictures and sounds of a model that takes them: its processor is not made."""
    limits = {"limit_mm_per_prompt": dict.fromkeys(others, 0)}
    return replace(base, arguments={**base.arguments, **limits})


_IMAGES = Serving(
    images=True,
    note="vLLM reads images with torchvision, which its CPU build does not bring along, and "
    "refuses the model without it, the base too",
)
# Sections of other configs that nothing reads as a model of its own.
SECTIONS = {
    text: f"no checkpoint has this model type: it is the language model's of {whole}"
    for text, whole in (
        ("glm4v_moe_text", "glm4v_moe"),
        ("qwen3_vl_moe_text", "qwen3_vl_moe"),
    )
}
# What cannot be compared, by family and column.
_THINKER = "no reference: transformers has its thinker alone, as a model type that is none of these"
UNCOMPARED = {("qwen3_omni_moe", column): _THINKER for column in ("scores", "live")}
SERVING: dict[str, Serving] = {
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA,
    "ernie4_5_moe": Serving(
        model={"correction": 0.0},
        live=Serving(),  # its own routers add the bias
        note="vLLM's CPU router ignores the correction bias, of the base too: tested with a bias "
        "of zero",
    ),
    "llama4": _text_only(_IMAGES, "image"),
    # vLLM caches prefixes of this class, as the live engine asks, with linear attention only.
    "qwen3_5_moe": _text_only(replace(_IMAGES, model=_ATTENTION, live=_DELTA), "image", "video"),
    "qwen3_omni_moe": _text_only(_IMAGES, "image", "video", "audio"),
    **dict.fromkeys(("qwen3_vl_moe", "glm4v_moe"), _text_only(_IMAGES, "image", "video")),
    "gemma4": _text_only(_IMAGES, "image", "video", "audio"),
    "kimi_k25": _text_only(replace(_MLA, images=True), "vision_chunk"),
    "step3p7": replace(
        _text_only(_IMAGES, "image"),
        refused="'Step3p7VisionConfig' object has no attribute",  # transformers' class, vLLM's keys
    ),
    "phimoe": Serving(
        note="vLLM does not add the bias of Phi-MoE's output head, of the base too: tested with a "
        "bias of zero"
    ),
    **dict.fromkeys(("glm4_moe_lite", "kimi_k2"), _MLA),
    "axk1": replace(_MLA, refused="not initialized from checkpoint: {'model.layers.0.post_mlp_"),
    **dict.fromkeys(
        ("glm_moe_dsa", "deepseek_v32"),
        Serving(refused="Sparse Attention is not supported on CPU."),
    ),
    "nemotron_h": Serving(
        refused="is_act_and_mul=False is supported only for CUDA, XPU and ROCm for now"
    ),
    "mimo_v2_flash": Serving(refused="module 'triton' has no attribute 'next_power_of_2'"),
    "kimi_linear": Serving(
        refused="No module named 'cutlass'",
        live=Serving(refused="mamba-block-size can only be set with"),
    ),
    "minimax_m3_vl_text": Serving(
        images=True, refused="'MiniMaxM3VLTextConfig' object has no attribute 'rope_theta'"
    ),
    "minimax_m3_vl": replace(
        _text_only(_IMAGES, "image", "video"),
        refused="No Unquantized MoE backend supports the deployment",
    ),
    **dict.fromkeys(
        ("qwen4_exp", "qwen4_exp_text"),
        Serving(
            {"dtype": "bfloat16", "language_model_only": True},
            model={"output_gate_type": "silu"},
            images=True,
            refused="Qwen4Exp QSA requires FlashAttention",
        ),
    ),
    "dbrx": Serving(refused="KeyError: 'blocks.0.ffn.experts.w13_weight'"),
    "deepseek_v4": Serving(refused="object is not subscriptable"),  # in Triton
    "longcat_flash": replace(
        _MLA, refused="'_OpNamespace' '_moe_C' object has no attribute 'topk_softmax'"
    ),
    "jamba": Serving(refused="object has no attribute 'selective_scan_fwd'"),
    "lfm2_moe": Serving(
        _ROTARY,
        note="vLLM's CPU kernel for rotary embeddings is wrong for this model's queries and keys "
        f"(the base's log-probabilities are off by 1); {_BY_PYTORCH}",
    ),
    "laguna": Serving(
        model={"correction": 0.0},
        note="vLLM 0.32 answers as if the correction bias were zero, of the base too: tested with "
        "a bias of zero",
    ),
    **{
        family: Serving(
            uncompact=f"vLLM has no model code of its own for {family}, whose layers could be "
            "built one by one"
        )
        for family in ("dots1", "flex_olmo", "hunyuan_v1_moe", "mellum", "solar_open")
    },
    "qwen3_5_moe_text": replace(_IMAGES, model=_ATTENTION),
    "qwen3_next": _DELTA,
}


# vLLM 0.30's CPU attention does not take gpt-oss's sinks in float32, in any form.
_SINKS = Serving(refused="expected scalar type BFloat16 but found Float")
_WITHOUT_IMAGES = Serving(refused="failed to be inspected")


def serving_of(family: str) -> Serving:
    """Return how a family is served by the installed vLLM."""
    from vllm.version import __version_tuple__ as installed

    if family == "gpt_oss" and installed < (0, 31):
        return _SINKS
    serving = SERVING.get(family, Serving())
    if serving.images and find_spec("torchvision") is None:
        return _WITHOUT_IMAGES
    return serving
