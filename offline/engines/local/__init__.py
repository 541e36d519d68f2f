"""The transformers engine: the base in this process, with gradients; also the oracle."""
