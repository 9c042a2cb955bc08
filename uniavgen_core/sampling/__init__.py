"""Sampling: MA-CFG guidance, the schedule and the Euler loop (SPEC section 7)."""
