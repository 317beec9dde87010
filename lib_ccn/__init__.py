"""Cross-ControlNet: training-free fusion of several ControlNets."""
