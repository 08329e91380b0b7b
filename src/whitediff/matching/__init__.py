"""Alard–Lupton matching of point-spread functions, on plain arrays."""
