"""Scenes with known truth, injected sources, completeness and false sources."""
