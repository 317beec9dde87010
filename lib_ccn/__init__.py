"""Cross-ControlNet: training-free fusion of several ControlNets."""

__version__ = "0.1.0"
