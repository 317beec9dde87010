"""Command line: `python -m training [STAGE ...] --out runs/demo`."""

from training.command import main

if __name__ == "__main__":
    main()
