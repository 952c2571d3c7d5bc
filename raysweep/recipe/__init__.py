"""The recipe of a sweep: what is compared, on which images, trained how.

A recipe is read from a preset or a YAML file, changed by `key=value` overrides, checked
whole before anything starts, and expanded into trials. This room knows neither Ray nor
torch, so that a mistake is answered in a fraction of a second.

A depth is counted in layers from the output (see `raysweep.nets.layers`); here it is only
a value: a positive integer, `head`, `all`, a module name, or a list of module patterns.
"""

from .errors import RecipeError, near
from .grid import EXTRA_AXES, MAIN_AXES, Block, Recipe, Trial
from .loading import dump, load, preset_names
from .renamed import renewed
from .schema import (
    Asha,
    Data,
    Features,
    Final,
    Head,
    Model,
    Phase,
    Resources,
    Train,
    is_weights_file,
)
from .values import SIXTEEN_BITS, Depth, Frozen, Objective, Precision, Statistics, depth_label, stored_type

__all__ = [
    "EXTRA_AXES",
    "MAIN_AXES",
    "SIXTEEN_BITS",
    "Asha",
    "Block",
    "Data",
    "Depth",
    "Features",
    "Final",
    "Frozen",
    "Head",
    "Model",
    "Objective",
    "Phase",
    "Precision",
    "Recipe",
    "RecipeError",
    "Resources",
    "Statistics",
    "Train",
    "Trial",
    "depth_label",
    "dump",
    "is_weights_file",
    "load",
    "near",
    "preset_names",
    "renewed",
    "stored_type",
]
