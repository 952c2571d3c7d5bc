"""Images: found, decoded once, split, prepared for a network, looked through for copies."""
