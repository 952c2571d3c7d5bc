"""Helper: predictions in a run folder."""

from pathlib import Path

from raysweep.files import write_bytes
from raysweep.sweep.evidence import ImagePredictions, predictions_file


def write_predictions(folder: Path, trial: str, found: ImagePredictions) -> None:
    """Write a trial's predictions as it does itself."""
    name, content = predictions_file(trial, found)
    write_bytes(folder / name, content)
