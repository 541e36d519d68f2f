"""What scores say of a model: numbers only; offline/report draws them."""
