"""Text in, per-expert statistics out: one pass from which every criterion follows."""
