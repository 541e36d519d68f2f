"""Checks for a machine with a GPU: `kernels` needs torch alone, `serving` vLLM (docs/gpu.md)."""
