"""How the demo model's experts were trained; `vmprune demo model` only reads what came of it."""
