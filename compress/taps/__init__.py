"""Named feature taps of any network: discovered, read by hooks, or traced to a graph."""

from compress.taps.tapped import MapSpec, Tapped, Taps, TapSpecs, encoder_until

__all__ = ["MapSpec", "TapSpecs", "Tapped", "Taps", "encoder_until"]
