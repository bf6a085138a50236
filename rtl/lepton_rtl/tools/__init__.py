"""Verilog, area and timing: what is made of the hardware, apart from it."""
