"""Recipes of `vmprune compress`: sections of settings, one recipe for each kind of method."""
