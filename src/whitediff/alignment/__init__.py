"""A template brought onto the science image's pixels, by sky coordinates and by stars."""
