"""What the process of `tests.vllm_probe` changes about itself: to be quick, and to run more."""

from __future__ import annotations

import gc
import sys
from typing import Any


class Garbage:
    """Spares the collector what lives as long as the process: the modules.

    vLLM freezes and unfreezes all objects with every engine, to collect the engine's; here those
    that are there between two engines stay frozen, and the engine's are never.
    """

    def __init__(self) -> None:
        self._freeze = gc.freeze
        gc.freeze = gc.unfreeze = lambda: None

    def is_gone(self) -> None:
        gc.collect()
        self._freeze()


def rebind_new_modules_only() -> None:
    """Let vLLM put its CPU kernels in place of others again only where modules have come since."""
    try:
        from vllm.triton_utils import dispatcher

        rebind, seen = dispatcher._rebind_kernels, [0]
    except (ImportError, AttributeError):  # other versions have no such step
        return

    def rebind_if_new(overrides: Any) -> None:
        if seen[0] != len(sys.modules):
            rebind(overrides)
            seen[0] = len(sys.modules)

    # It takes the attributes of every object of every module for a dictionary.
    dispatcher.vars = lambda one: found if isinstance(found := vars(one), dict) else {}
    dispatcher._rebind_kernels = rebind_if_new


def fork_ranks() -> None:
    """Let tensor-parallel ranks be forks of this process, with all that it has imported.

    vLLM spawns them on a CPU, which imports everything anew for each model and rank. This process
    has computed nothing yet when they begin, and has no threads of OpenMP's.
    """
    import multiprocessing

    from vllm.v1.executor import multiproc_executor

    multiproc_executor.get_mp_context = lambda: multiprocessing.get_context("fork")


def let_sigmoids_choose() -> None:
    """Let vLLM's CPU router choose by sigmoids without groups as it does with one.

    It asserts a softmax there, so that no such model computes anything; its kernels for GPUs
    choose like this. What is computed else is vLLM's own.
    """
    try:
        from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
    except ImportError:  # of other versions, and other devices
        return
    compute = CPURouter._compute_routing

    def compute_in_one_group(self: Any, *given: Any, **named: Any) -> Any:
        own = self.custom_routing_function is None and not self.use_grouped_topk
        if own and self.scoring_func == "sigmoid":
            self.use_grouped_topk, self.num_expert_group, self.topk_group = True, 1, 1
        return compute(self, *given, **named)

    CPURouter._compute_routing = compute_in_one_group
