"""Fetch: images from OCI registries over HTTP.  Knows nothing of disks."""
