"""Checking: a built checkpoint is served, compared and probed."""
