"""The hardware in simulation: the Verilated accelerator with its memory and bus models."""
