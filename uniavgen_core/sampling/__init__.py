"""Sampling: MA-CFG guidance, the schedule and the Euler loop (docs/model.md section 7)."""
