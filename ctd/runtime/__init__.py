"""Runtime: containers and their processes, run by an OCI runtime under shims."""
