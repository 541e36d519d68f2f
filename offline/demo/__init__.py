"""The embedded default: a small real Mixture-of-Experts model and its data."""
