"""Which maps a base allows, and how a search writes them down: spaces, genomes, groups."""
