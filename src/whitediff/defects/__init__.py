"""Defects that no mask tells of, on arrays: cosmic rays, bad pixels and columns, trails."""
