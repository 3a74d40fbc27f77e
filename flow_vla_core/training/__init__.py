"""Training: loop, averaging, schedules, checkpoints."""
