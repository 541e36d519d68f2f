"""Methods: each turns what is known of a model into a routing map."""
