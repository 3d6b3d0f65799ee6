"""Layer blobs made into snapshots, in worker processes, while they arrive."""
