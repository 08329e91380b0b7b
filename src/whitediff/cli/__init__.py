"""The command line: one module per command.

Modules here import click and the standard library at the top, and everything else when
a command runs, so that help answers at once.
"""
