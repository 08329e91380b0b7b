"""Bringing a template onto the science image's pixels, and its stars onto the science image's."""
