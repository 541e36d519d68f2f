"""Many choices from one scoring pass, measured, and the smallest that loses little enough."""
