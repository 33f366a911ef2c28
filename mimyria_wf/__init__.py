"""From a machine-learned potential to trustworthy IR and Raman spectra."""

__version__ = "0.1.0"
