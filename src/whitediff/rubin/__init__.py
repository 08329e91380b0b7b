"""Rubin's middleware: what Butler stores for us, repositories, pipelines and batch systems."""
