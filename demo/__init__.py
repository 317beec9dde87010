"""The embedded default: a demo model of our own and commands to try the method with it."""
