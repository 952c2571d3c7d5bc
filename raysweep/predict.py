"""The command `python -m raysweep.predict DIR IMAGE ...`: what the final model says of images.

Exit status: 0 every image was answered; 1 some could not be read, they are named and the others
answered; 2 a mistake in what was asked for.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .commands import refuse
from .recipe import RecipeError

if TYPE_CHECKING:
    from .sweep.serving import Answer


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", metavar="K", type=click.IntRange(min=1), default=1, help="The K likeliest classes [default: 1].")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--csv", "as_csv", is_flag=True, help="A line for each image and rank.")
def main(folder: Path, images: tuple[Path, ...], top: int, as_json: bool, as_csv: bool) -> None:
    """Say the class of images by the final model in DIR, a run folder or its final/<name>.

    IMAGE is an image file or a folder of them.
    """
    try:
        if as_json and as_csv:
            raise RecipeError("--json and --csv are two forms of one answer; choose one")
        from .sweep import serving

        found, note = serving.find_model(folder)
        files = serving.image_files(images)
        if note:
            click.echo(note, err=True)
        said = list(serving.answers(serving.read_model(found), files, top))
    except RecipeError as error:
        sys.exit(refuse(error))
    click.echo(_as_json(found, said) if as_json else _as_csv(said) if as_csv else _as_table(said))
    unread = [one for one in said if one.problem]
    for one in unread:
        click.echo(f"error: {one.image} {one.problem}", err=True)
    sys.exit(1 if unread else 0)


def _as_json(model: Path, said: Sequence[Answer]) -> str:
    return json.dumps(
        {
            "model": str(model),
            "predictions": [
                {"image": one.image, "classes": [{"class": name, "probability": p} for name, p in one.classes]}
                for one in said
                if not one.problem
            ],
            "unreadable": [{"image": one.image, "why": one.problem} for one in said if one.problem],
        },
        indent=1,
        ensure_ascii=False,
    )


def _rows(said: Sequence[Answer]) -> list[tuple[str, int, str, float]]:
    """Image, rank, class and probability."""
    return [(one.image, rank, *best) for one in said for rank, best in enumerate(one.classes, start=1)]


def _as_csv(said: Sequence[Answer]) -> str:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["image", "rank", "predicted", "probability"])
    lines.writerows((image, rank, name, f"{probability:.6f}") for image, rank, name, probability in _rows(said))
    return text.getvalue().rstrip("\n")


def _as_table(said: Sequence[Answer]) -> str:
    rows = [(image if rank == 1 else "", name, f"{p:.4f}") for image, rank, name, p in _rows(said)]
    table = [("image", "predicted", "probability"), *rows]
    image, name = (max(len(row[column]) for row in table) for column in (0, 1))
    return "\n".join(f"{row[0]:{image}}  {row[1]:{name}}  {row[2]:>11}" for row in table)


if __name__ == "__main__":
    main(prog_name="python -m raysweep.predict")
