"""Outputs of the frozen prefix: whether storing them pays, how they are made, where they are kept."""
