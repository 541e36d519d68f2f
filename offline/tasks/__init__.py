"""Benchmark tasks, from local files, as fitness while searching and as evaluation afterwards."""
