"""Events: the journal."""
