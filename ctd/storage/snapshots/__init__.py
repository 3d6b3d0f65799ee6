"""Snapshotters: root file systems as a tree, one module a kind of storage."""
