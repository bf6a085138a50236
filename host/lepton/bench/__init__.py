"""Measurements and evaluation: what `lepton bench` and `lepton eval` print."""
