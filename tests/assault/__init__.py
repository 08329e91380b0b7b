"""Damaged and hostile files of every format that whitediff reads, drawn from a seed.

``python -m tests.assault --cases N --seed S`` makes any number of them.  A case is a target (a
whole file, and what is read from it), a kind of damage, and a seed; `recipes.txt` keeps those that
once failed.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
if str(HERE.parent) not in sys.path:
    # Run as a module, where pytest has not set the path.
    sys.path.insert(0, str(HERE.parent))
