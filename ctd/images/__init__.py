"""Images: joins fetch and storage, and turns image configurations into root file systems."""
