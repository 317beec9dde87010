"""Does the method do what it promises? Pictures of condition pairs under every rule, measured.

`python3 run.py bench fidelity --help` tells the options; `benchmarks/FIDELITY.md` has the results.
"""
