"""One small pure function per criterion: statistics -> one number per expert, or per pair."""
