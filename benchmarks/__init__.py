"""Performance figures, each from one command that measures everything side by side."""
