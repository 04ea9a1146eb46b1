"""The verbs of the command line: each one's options, what it says, and its exit codes."""
