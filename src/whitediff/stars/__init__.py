"""Sources of an image, the stars among them, and stamps of stars: on arrays."""
