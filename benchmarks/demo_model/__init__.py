"""How the demo model's experts were trained; what it made lies in the demo-model package."""
