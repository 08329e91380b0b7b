"""Sources of an image, which of them are stars, and their stamps: on arrays."""
