"""Processes die in every step of an evacuation; see the tests to come."""
