"""The vLLM engine: the base in a running vLLM, with candidates swapped into it."""
