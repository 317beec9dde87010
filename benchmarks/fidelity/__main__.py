"""`python -m benchmarks.fidelity`, as `python3 run.py bench fidelity`."""

from lib_ccn.playground.quiet import silence_libraries

if __name__ == "__main__":
    silence_libraries()  # before what follows imports their pipelines
    from benchmarks.fidelity.command import main

    raise SystemExit(main())
