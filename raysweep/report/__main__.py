"""The command `python -m raysweep.report DIR [DIR ...]`: the report on a run again, or several compared."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..sweep.ledger import read
from .page import gather, in_short, unread, write
from .watch import watch


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", metavar="FOLDER", type=click.Path(path_type=Path), help="Where to write [default: DIR/report].")
@click.option("--tolerance", type=click.FloatRange(0, 100), help="Percentage points to give up for a cheaper depth.")
@click.option(
    "--confidence", type=click.FloatRange(0.5, 1, min_open=True, max_open=True), help="That a depth is enough."
)
@click.option("--watch", "follow", is_flag=True, help="Build it again as rows arrive, until the sweep has ended.")
def main(
    folders: tuple[Path, ...], out: Path | None, tolerance: float | None, confidence: float | None, follow: bool
) -> None:
    """Write the report on a run folder, or compare several; print the answer and the page's path."""
    try:
        if follow:
            watch(folders, out, tolerance, confidence, click.echo)
        facts = gather([read(folder) for folder in folders], tolerance, confidence)
        page = write(facts, out)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # RunFolderError among them
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    for said in unread(facts):
        click.echo(f"warning: {said}", err=True)
    click.echo(in_short(facts))
    click.echo(f"report: {page}")


if __name__ == "__main__":
    main(prog_name="python -m raysweep.report")
