"""The command `python -m raysweep.report DIR [DIR ...]`: the report on a run again, or several compared."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..recipe.yaml_core import YamlError
from ..sweep.ledger import RunFolderError
from .page import build, compare


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", metavar="FOLDER", type=click.Path(path_type=Path), help="Where to write [default: DIR/report].")
def main(folders: tuple[Path, ...], out: Path | None) -> None:
    """Write the report on a run folder, or compare several."""
    try:
        page = build(folders[0]) if len(folders) == 1 and out is None else compare(folders, out)
    except (RunFolderError, OSError, YamlError) as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    click.echo(page)


if __name__ == "__main__":
    main(prog_name="python -m raysweep.report")
