"""Programs behind the figures in the README: each prints a ratio measured in one run."""
