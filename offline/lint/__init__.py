"""What a plan means for those who will serve it."""
