"""Linear layers in int8: find them, quantize them, and the module that takes their place."""
