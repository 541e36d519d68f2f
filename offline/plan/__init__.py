"""`vmprune plan`: from saved scores to a routing map."""
