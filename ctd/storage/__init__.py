"""Storage: verified content, layered snapshots, diffs, garbage.  Knows nothing of HTTP."""
