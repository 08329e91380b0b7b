"""Rubin's middleware: Butler storage, repositories, pipelines and batch systems."""
