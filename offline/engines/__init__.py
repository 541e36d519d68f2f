"""Engines run a model under a routing map: transformers in this process, or a live vLLM."""
