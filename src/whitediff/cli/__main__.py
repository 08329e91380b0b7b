"""``python -m whitediff.cli``."""

from .main import main

main()
