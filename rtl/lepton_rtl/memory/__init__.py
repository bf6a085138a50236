"""The memory port: bursts read and written, and the weight stream."""
