"""What is noise in an image, how large it is and how it correlates; what is source."""
