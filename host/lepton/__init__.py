"""The runtime of Lepton: load, quantize, partition, compile and run."""
