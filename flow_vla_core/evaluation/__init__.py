"""Measures policies: reports, the loop in one process, the same-scene pair, videos and plots."""
