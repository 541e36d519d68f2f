"""The families that there are, as data: one entry each, by what their MoE blocks have in common."""
