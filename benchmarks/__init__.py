"""How long whitediff takes, and how much memory: ``python -m benchmarks --help``.

Times depend on the machine and on what else it does.  So everything is measured in one run
beside two things that it is compared with: the documented formulas written down literally
(`baseline`), and one pair of real transforms of the frame in single precision, which is what
the physics needs at least.
"""
