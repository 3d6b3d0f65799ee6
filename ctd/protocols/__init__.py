"""Framing, JSON-RPC, the control protocol and the shim protocol."""
