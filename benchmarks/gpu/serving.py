"""What vLLM serves and searches with this project, on one GPU: right, compiled, at what speed.

    python -m benchmarks.gpu.serving

Needs the package with its `gpu` extra (or `cpu`), downloads nothing and takes less than ten
minutes; docs/gpu.md says what each step shows. The last line of stdout is one JSON object; the
exit code is 1 if a step failed.
"""

from __future__ import annotations

from benchmarks.gpu.command import command
from benchmarks.gpu.drafting import draft_beside_compact
from benchmarks.gpu.formats import fp8_blocks, mxfp4
from benchmarks.gpu.latency import decode_latency
from benchmarks.gpu.parity import compiled_maps
from benchmarks.gpu.searching import live_engine

STEPS = {
    "B1-compiled-maps": compiled_maps,
    "B2-live-engine": live_engine,
    "B3-decode-latency": decode_latency,
    "B4-mxfp4": mxfp4,
    "B4-fp8-blocks": fp8_blocks,
    "B5-draft": draft_beside_compact,
}
main = command("gpu_serving", "benchmarks.gpu.serving", STEPS, __doc__, apart=True)

if __name__ == "__main__":
    main()
