"""The `vmprune` command: one file per subcommand, heavy imports inside the commands."""
