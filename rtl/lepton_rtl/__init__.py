"""The accelerator in Amaranth. A room per part, a module per unit; :mod:`lepton_rtl.top.core` joins them."""
