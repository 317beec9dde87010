"""How the demo model was made: `python -m training --help`."""
