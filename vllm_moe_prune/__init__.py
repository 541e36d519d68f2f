"""The routing-map contract and the vLLM plugin: all that a serving host needs."""

__version__ = "0.1.0"
