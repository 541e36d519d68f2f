"""Building: the checkpoint that a map describes, with its card and companions."""
