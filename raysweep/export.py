"""The command `python -m raysweep.export DIR --onnx --torch-export`: the final model as one graph.

Exit status: 0 the files are written and answer as the model; 1 a graph was written that does not;
2 a mistake in what was asked for.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .commands import refuse
from .recipe import RecipeError

ALLOWED = 1e-4
"""Difference in a probability that is put down to arithmetic."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--onnx", is_flag=True, help="Write model.onnx.")
@click.option("--torch-export", is_flag=True, help="Write model.pt2, for torch.export.load.")
@click.option(
    "--out", metavar="FOLDER", type=click.Path(path_type=Path), help="Where to [default: the model's folder]."
)
def main(folder: Path, onnx: bool, torch_export: bool, out: Path | None) -> None:
    """Write the final model in DIR, a run folder or its final/<name>, as one graph.

    It takes decoded images of any size (uint8, RGB) and gives probabilities: cropping, resizing,
    normalisation, softmax and the class names are in it. Nothing is sent anywhere.
    """
    try:
        status = _export(folder, onnx, torch_export, out)
    except RecipeError as error:
        status = refuse(error)
    sys.exit(status)


def _export(folder: Path, onnx: bool, torch_export: bool, out: Path | None) -> int:
    """Write what is asked for; returns the exit status."""
    if not onnx and not torch_export:
        raise RecipeError("nothing is asked for; say --onnx, --torch-export or both")
    from .sweep import portable, serving

    found, note = serving.find_model(folder)
    if note:
        click.echo(note, err=True)
    model = serving.read_model(found)
    if onnx:
        portable.check_onnx()
    program = portable.exported(model)
    names = portable.outputs(model, program)
    writers = [(portable.ONNX, portable.write_onnx)] * onnx + [(portable.TORCH, portable.write_torch)] * torch_export
    worst = 0.0
    for name, write in writers:
        file = (out or found) / name
        try:
            run = write(file, program, names)
        except OSError as error:
            raise RecipeError(f"{file} cannot be written ({error.strerror or error}); say where by --out") from None
        if run is None:
            click.echo(f"{file} (not checked: pip install onnxruntime)")
            continue
        difference = portable.deviation(model, run)
        worst = max(worst, difference)
        click.echo(f"{file}: its probabilities are those of {found} within {difference:.0e}")
    if model.preparation.value_range:
        low, high = model.preparation.value_range
        click.echo(f"images with more than 8 bits are to be scaled before: {low:g} to 0, {high:g} to 255")
    if worst > ALLOWED:
        click.echo(f"error: a graph differs from the model by {worst:.1g} in a probability; do not serve it", err=True)
    return int(worst > ALLOWED)


if __name__ == "__main__":
    main(prog_name="python -m raysweep.export")
