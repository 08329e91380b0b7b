"""``python -m whitediff``: the command line."""

from .cli.main import main

main()
