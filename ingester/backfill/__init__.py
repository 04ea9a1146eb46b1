"""What is sent once, on somebody's word, beside the workers: replays and redrives."""
