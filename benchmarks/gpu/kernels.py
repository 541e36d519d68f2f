"""What this project computes with torch alone, on one GPU: right, in place, without waiting.

    python -m benchmarks.gpu.kernels

Needs neither vLLM nor a model, and about three minutes; docs/gpu.md says what each step shows. The
last line of stdout is one JSON object; the exit code is 1 if a step failed.
"""

from __future__ import annotations

from benchmarks.gpu.command import command
from benchmarks.gpu.local_engine import same_as_cpu, scoring
from benchmarks.gpu.merging import live_experts
from benchmarks.gpu.routing import live_routing, router_maps

STEPS = {
    "A1-route": router_maps,
    "A2-live-routing": live_routing,
    "A3-live-experts": live_experts,
    "A4-scoring": scoring,
    "A5-same-as-cpu": same_as_cpu,
}
main = command("gpu_kernels", "benchmarks.gpu.kernels", STEPS, __doc__, apart=False)

if __name__ == "__main__":
    main()
