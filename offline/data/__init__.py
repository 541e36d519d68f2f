"""Data that is read: packages with models, questions and texts."""
