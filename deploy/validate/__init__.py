"""An Artifact becomes Evidence: parity with float64 and measured latency."""
