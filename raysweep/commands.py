"""What the commands have in common."""

from __future__ import annotations

import click

from .recipe import RecipeError

MISTAKE = 2
"""Exit status of a mistake in what was asked for: nothing was started."""


def refuse(error: RecipeError) -> int:
    """Say what was wrong, a line each; returns the exit status."""
    for problem in error.problems:
        click.echo(f"error: {problem}", err=True)
    return MISTAKE
