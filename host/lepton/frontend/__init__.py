"""Understands PyTorch models: families, the proof that a model is what it seems, and trial runs."""
