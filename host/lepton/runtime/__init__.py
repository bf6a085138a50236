"""Runs Linear layers and whole Transformers on a device, or in the reference arithmetic."""
