"""Numbers of experts that vLLM's GPU kernels are made for, and the nearest of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

# The counts for which vLLM 0.32 instantiates its fused top-k kernel (softmax and sigmoid routers):
# csrc/libtorch_stable/moe/topk_softmax_kernels.cu, `topkGatingKernelLauncher`. Any other count
# takes the general path, two kernels and a workspace. On ROCm only the powers of two are there.
# DeepSeek-V4's router kernel has the same list and fails on any other count (vLLM #50982, #51521).
FUSED_TOPK = frozenset({1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 320, 384, 448, 512, 576})
# The counts E for which vLLM 0.32 ships tuned settings of its fused MoE kernel, each for some
# shapes and GPUs: files `E=...,N=...,device_name=...json` in fused_moe/configs.
TUNED = frozenset({1, 8, 16, 20, 32, 40, 60, 62, 64, 72, 128, 129, 160, 256, 384, 512})


def nearest_friendly(
    count: int, least: int, most: int, *, divisors: Iterable[int] = (), only_down: bool = False
) -> int:
    """Return the kernel-friendly count that is nearest to ``count``, of two the higher one.

    :param least: and ``most``: bounds of what may be kept
    :param divisors: what must divide it: router groups, the size of expert parallelism
    :param only_down: not above ``count`` as long as there is one below (a budget is a ceiling)
    :returns: ``count`` itself where no friendly one fits
    """
    sizes = tuple(divisors)
    fit = [n for n in FUSED_TOPK if least <= n <= most and all(n % size == 0 for size in sizes)]
    if only_down:
        fit = [n for n in fit if n <= count] or fit
    return min(fit, key=lambda n: (abs(n - count), -n), default=count)


def spans(layers: Collection[int]) -> str:
    """Write layer numbers as people do: `layer 3`, `layers 0-4, 7`."""
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    text = ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
    return f"layer{'s' if len(layers) > 1 else ''} {text}"
