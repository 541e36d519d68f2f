"""All that touches vLLM internals which move between its minor versions, one topic per file.

Nothing outside this package does. Each file needs vLLM only when its functions are called.
"""
