"""Helper: trials of small networks on a few fake images; without pretrained weights."""

from raysweep.recipe import Data, Model, Recipe, Train, Trial

SECTIONS = {"data": Data, "model": Model, "train": Train}
SMALL = {
    "data": {"dataset": "fake:4", "image_size": 32, "limit": 48},
    "model": {"weights": "none"},
    "train": {"epochs": 2, "batch_size": 16, "eval_batch_size": 16},
}
TRAIN_IMAGES, VAL_IMAGES, TEST_IMAGES = 48, 12, 15
STEPS = 3
"""Of an epoch: 48 images in batches of 16."""


def trials_of(backbone="small_cnn", depth=1, lr=0.01, seed=0, **fields) -> tuple[Trial, ...]:
    """All trials of a small grid; other fields of data, model and train are given by their bare names."""
    sections = {name: dict(values) for name, values in SMALL.items()}
    for field, value in fields.items():
        (section,) = [name for name, kind in SECTIONS.items() if field in kind.model_fields]
        sections[section][field] = value
    grid = {"backbone": backbone, "depth": depth, "lr": lr, "seed": seed}
    return Recipe.model_validate({"grid": grid, **sections}).trials()


def trial_of(*args, **fields) -> Trial:
    """The one trial of a small grid."""
    (trial,) = trials_of(*args, **fields)
    return trial
