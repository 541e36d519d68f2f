"""Which process runs which tests, in which order, and which ones `make quick` leaves out.

A file goes to one worker as a whole, for the sake of its fixtures. What asks the shared process of
`tests.vllm_probe` is one group: its process starts once. What starts servers and engines of its own
is another: in a new clone the first start compiles kernels for a minute, which two starts side by
side would both do. Files that start engines come first, or
one worker would end with a minute of them while the other has nothing left. Tests keep their order
within a file, and files theirs among those of their kind.
"""

from __future__ import annotations

from typing import Any

import pytest

# Files whose tests ask `tests.vllm_probe.probe`, and those that start servers and engines of their
# own: -> the name of their group.
_PROBE = "the shared process of vLLM"
_STARTS = "starts of vLLM"
GROUPS = dict.fromkeys(
    (
        "tests/families/test_mxfp4.py",
        "tests/families/test_quantised_scores.py",
        "tests/families/test_scores.py",
        "tests/families/test_serving.py",
        "tests/families/test_quantised_served.py",
        "tests/families/test_substituted.py",
        "tests/families/test_mtp_served.py",
        "tests/vllm_moe_prune/test_parity.py",
        "tests/vllm_moe_prune/test_lora.py",
    ),
    _PROBE,
) | dict.fromkeys(
    (
        "tests/benchmarks/test_overhead.py",
        "tests/check/test_check.py",
        "tests/compress/test_served_result.py",
        "tests/engines/live/test_engine.py",
        "tests/test_digests.py",
    ),
    _STARTS,
)
# What takes long together: whole runs, training, Ray, locust, servers that break off, Triton's
# interpreter, children that import torch, real data, properties of any input.
LONG = (
    "tests/analysis/test_cli.py",
    "tests/analysis/test_use.py",
    "tests/benchmarks/",
    "tests/calibration/test_calibrate.py",
    "tests/calibration/test_outliers.py",
    "tests/calibration/test_stored.py",
    "tests/calibration/test_weights.py",
    "tests/check/test_deployed.py",
    "tests/check/test_gated.py",
    "tests/check/test_judging.py",
    "tests/cli/test_by_id.py",
    "tests/cli/test_eval_text.py",
    "tests/cli/test_map_by_id.py",
    "tests/cli/test_prompting.py",
    "tests/compress/test_compress.py",
    "tests/compress/test_eep.py",
    "tests/compress/test_oneshot.py",
    "tests/compress/test_paper_tasks.py",
    "tests/compress/test_router_kind.py",
    "tests/engines/live/test_requests.py",
    "tests/engines/local/test_attention.py",
    "tests/engines/local/test_dense.py",
    "tests/engines/local/test_generation.py",
    "tests/engines/ray/",
    "tests/engines/test_replies.py",
    "tests/families/",
    "tests/finetune/",
    "tests/fuzz/test_fuzz.py",
    "tests/hub/",
    "tests/loadtest/test_compare.py",
    "tests/loadtest/test_distributed.py",
    "tests/loadtest/test_locustfile.py",
    "tests/loadtest/test_modes.py",
    "tests/loadtest/test_server_metrics.py",
    "tests/lottery/",
    "tests/methods/test_adding.py",
    "tests/methods/test_eep.py",
    "tests/recover/test_recover.py",
    "tests/report/test_leftovers.py",
    "tests/sweep/test_sweep.py",
    "tests/tasks/test_commands.py",
    "tests/tasks/test_harness.py",
    "tests/tasks/test_paper_extraction.py",
    "tests/tasks/test_paper_tasks.py",
    "tests/tasks/test_same_as_lm_eval.py",
    "tests/tasks/test_splits.py",
    "tests/test_caches.py",
    "tests/test_digests.py",
    "tests/test_own_names.py",
    "tests/test_wheel.py",
    "tests/testbed/test_puzzles.py",
    "tests/texts/test_hub.py",
    "tests/texts/test_hygiene.py",
    "tests/texts/test_long.py",
    "tests/vllm_moe_prune/test_composition.py",
    "tests/vllm_moe_prune/test_expert_metrics.py",
    "tests/vllm_moe_prune/test_hub.py",
    "tests/vllm_moe_prune/test_hub_parts.py",
    "tests/vllm_moe_prune/test_mapped_router.py",
)


def is_long(file: str) -> bool:
    """Whether a test's or a file's name says that `make quick` leaves it out."""
    return file.startswith(LONG)


def group_of(nodeid: str) -> str:
    """Return the name of the tests that one worker gets together."""
    file = nodeid.partition("::")[0]
    if file.startswith("tests/lottery/"):  # whose fixtures are the package's
        return "lottery"
    return GROUPS.get(file, file)


def arrange(items: list[pytest.Item]) -> None:
    """Mark what is long, and put files that start engines first."""
    for item in items:
        if is_long(item.nodeid):
            item.add_marker("long")
    ranks: dict[str, int] = {}
    for item in items:
        group = group_of(item.nodeid)
        ranks[group] = min(ranks.get(group, 2), _rank(item))
    items.sort(key=lambda item: ranks[group_of(item.nodeid)])


def _rank(item: pytest.Item) -> int:
    return 0 if item.get_closest_marker("vllm") else 1 if item.get_closest_marker("long") else 2


def scheduler(config: pytest.Config, log: Any) -> Any:
    """Return xdist's scheduler of files, with our groups."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False  # xdist would begin with the files of most tests
    return Scheduling(config, log)
