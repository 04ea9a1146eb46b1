"""A worker: the loop around the core, its errands, and what it says of itself."""
