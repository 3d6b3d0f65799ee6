"""The shim and its template: standard library only, nothing of the daemon."""
