"""Quantised checkpoints where their weights are computed with: told from headers, decoded."""
