"""Every decision, and no I/O: facts in, commands out, time and jitter are arguments."""
