"""The `vmprune` command line: calibrate, search, build, check and report."""
