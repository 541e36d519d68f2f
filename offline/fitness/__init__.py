"""Fitness: what a candidate map is worth, measured on several engines and remembered in a log."""
