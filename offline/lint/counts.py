"""Numbers of experts that vLLM's GPU kernels are made for, and those that they refuse."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Iterable, Sequence

from vllm_moe_prune.layer_map import LayerMap

# The counts for which vLLM 0.32 instantiates its fused top-k kernel (softmax and sigmoid routers):
# csrc/libtorch_stable/moe/topk_softmax_kernels.cu, `topkGatingKernelLauncher`. Any other count
# takes the general path, two kernels and a workspace. On ROCm only the powers of two are there.
# DeepSeek-V4's router kernel has the same list and fails on any other count (vLLM #50982, #51521).
FUSED_TOPK = frozenset({1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 320, 384, 448, 512, 576})
# The counts E for which vLLM 0.32 ships tuned settings of its fused MoE kernel, each for some
# shapes and GPUs: files `E=...,N=...,device_name=...json` in fused_moe/configs.
TUNED = frozenset({1, 8, 16, 20, 32, 40, 60, 62, 64, 72, 128, 129, 160, 256, 384, 512})


# Blackwell's default kernels (FlashInfer's TRT-LLM) take neither more than this nor what is not a
# multiple of four: vLLM 0.32's trtllm_fp8_moe.py asserts both, and FlashInfer's launchers the
# latter and k < E.
_BLACKWELL_MOST, _BLACKWELL_MULTIPLE = 512, 4


def starts_on_blackwell(count: int, top_k: int) -> bool:
    """Whether vLLM's default kernels on Blackwell GPUs take so many experts."""
    return top_k < count <= _BLACKWELL_MOST and count % _BLACKWELL_MULTIPLE == 0


def friendly_counts(least: int, most: int, divisors: Iterable[int] = ()) -> list[int]:
    """Return the kernel-friendly counts (`FUSED_TOPK`) within bounds, lowest first.

    :param divisors: what must divide them: router groups, the size of expert parallelism
    """
    sizes = tuple(divisors)
    fit = (n for n in FUSED_TOPK if least <= n <= most and all(n % size == 0 for size in sizes))
    return sorted(fit)


def neighbours(count: int, among: Sequence[int]) -> tuple[int, ...]:
    """Return the next number below or at ``count`` and the next above, as far as there are.

    :param among: in rising order
    """
    if count in among:
        return (count,)
    place = bisect(among, count)
    return tuple(among[max(place - 1, 0) : place + 1])


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


def routes_in_kernel(entry: LayerMap) -> bool:
    """Whether vLLM's own router may choose the experts of a layer."""
    return entry.router == "sliced" and entry.substituted is None


def by_counts(entries: Iterable[LayerMap]) -> list[tuple[list[int], int, int]]:
    """Return (layers, E', k) for each pair of counts."""
    found: dict[tuple[int, int], list[int]] = {}
    for entry in entries:
        found.setdefault((entry.num_kept, entry.top_k), []).append(entry.layer)
    return [(layers, kept, k) for (kept, k), layers in sorted(found.items())]


def by_kept(entries: Iterable[LayerMap]) -> list[tuple[list[int], int]]:
    """Return (layers, E') for each count."""
    found: dict[int, list[int]] = {}
    for entry in entries:
        found.setdefault(entry.num_kept, []).append(entry.layer)
    return [(layers, kept) for kept, layers in sorted(found.items())]
