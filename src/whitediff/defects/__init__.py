"""Defects that the mask lacks: cosmic rays, bad pixels and columns, trails, level jumps."""
