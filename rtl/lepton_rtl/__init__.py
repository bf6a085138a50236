"""The accelerator in Amaranth. One module per unit; :mod:`lepton_rtl.core` joins them."""
