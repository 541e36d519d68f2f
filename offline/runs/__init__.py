"""Runs of a command: output that appears whole, resuming, progress, device, units."""
