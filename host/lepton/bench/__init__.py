"""Measurements: speed on this machine, cycles of the simulated accelerator, quality of a quantized model.

Functions return results that are plain numbers and know their JSON; printing is for :mod:`lepton.cli`.
"""
