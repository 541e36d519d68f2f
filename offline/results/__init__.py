"""What commands leave behind: the schema of every result file."""
