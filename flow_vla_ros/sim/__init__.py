"""Simulated robots that look like real ones on the graph."""
