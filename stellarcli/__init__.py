"""From raw survey spectra to a catalogue of stellar parameters."""

__version__ = "0.1.0"
