"""Copies of an engine that share candidates, placed by Ray."""
