"""Shared by all tests."""

from hypothesis import settings

# A busy machine is no reason for a property to fail.
settings.register_profile("ccn", deadline=None)
settings.load_profile("ccn")
