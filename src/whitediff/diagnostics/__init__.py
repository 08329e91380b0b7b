"""How white is an image, in numbers and pictures."""
