"""`vmprune compress`: recipe -> prepared -> observations -> choose -> held out -> summary."""
