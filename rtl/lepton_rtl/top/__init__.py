"""The accelerator as a whole."""
