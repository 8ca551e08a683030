"""Measurements against what one would otherwise take; each writes its own section of RESULTS.md."""
