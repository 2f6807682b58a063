"""A Version becomes a running tritonserver, and its answers become served parity."""
