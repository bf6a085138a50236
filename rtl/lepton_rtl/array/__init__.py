"""The systolic array with what feeds it and what leaves it."""
