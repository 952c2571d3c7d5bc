"""Files and overrides."""

import subprocess
import sys

import pytest

from raysweep.recipe import Recipe, RecipeError, dump, load, preset_names, yaml_core
from raysweep.sweep.ledger import Ledger

BLOCKS = """
name: two
grid:
  - {backbone: [resnet18], depth: [1, 3], lr: [1.0e-3]}
  - {backbone: [small_cnn], depth: [all], lr: [1.0e-3], weights: none, image_size: 32}
"""


def points(recipe):
    return [(trial.backbone, trial.depth, trial.lr) for trial in recipe.trials()]


def test_quickstart_is_the_first_preset_and_the_default():
    assert preset_names()[0] == "quickstart"
    assert load() == load("quickstart")


def test_empty_file_is_all_defaults(recipe_file):
    assert load(recipe_file("")) == Recipe()


def test_dump_is_read_back_to_an_equal_recipe(recipe_file):
    recipe = load(recipe_file(BLOCKS), ["grid.depth=[1, head, [layer1, fc]]", "grid.batch_norm=[frozen, training]"])
    again = load(recipe_file(yaml_core.dumps(dump(recipe))))
    assert again == recipe
    assert [trial.name for trial in again.trials()] == [trial.name for trial in recipe.trials()]


EVERYTHING = """
name: everything
description: "a ${data.dataset} sweep: été"
data: {dataset: cifar10, augment: hflip, normalize: {mean: [0, 0.5, 1], std: [1, 2.0, 1.0e-5]}, limit: 100}
grid:
  - backbone: resnet18
    depth: [1, head, [layer1, fc]]
    lr: [1e-3, 3]
    head: [keep, {kind: mlp, sizes: [8, 4], dropout: 0.5}, linear]
    normalize: [dataset, {mean: [0, 0, 0], std: [1, 1, 1]}]
    weights: [IMAGENET1K_V1, mine.pth]
  - {backbone: small_cnn, clip_norm: [null, 1.0], compile: false}
model: {head: {kind: mlp, sizes: 64, activation: none}, weights: none}
train: {weight_decay: 1.0e-4}
objective: balanced_accuracy
tolerance: 1
confidence: 0.8
asha: null
resources: {gpus_per_worker: 0.5}
features: {cache: false}
final: {of: all}
"""
PLAIN = "asha: {grace_epochs: 1, compare_within: [depth]}"


@pytest.mark.parametrize("text", ["", BLOCKS, EVERYTHING, PLAIN, "asha: {guard: null}"])
def test_a_run_folder_gives_its_recipe_back(recipe_file, tmp_path, text):
    recipe = load(recipe_file(text), ["train.epochs=7"])
    with Ledger(tmp_path / "run") as book:
        book.describe({"recipe": dump(recipe), "versions": {"torch": "2"}, "command": "grid 'name=${x}'"})
    again = load(str(tmp_path / "run" / "recipe.yaml"))
    assert again == recipe
    assert dump(again) == dump(recipe)
    assert [trial.name for trial in again.trials()] == [trial.name for trial in recipe.trials()]


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_dumped_and_read_back(recipe_file, name):
    recipe = load(name)
    assert load(recipe_file(yaml_core.dumps(dump(recipe)))) == recipe
    assert Recipe.model_validate(dump(recipe)) == recipe


def test_files_become_absolute(recipe_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somewhere")
    assert load(recipe_file("data: {root: photos}")).data.root == str(tmp_path / "photos")
    assert load(recipe_file("data: {root: ~/photos}")).data.root == "/somewhere/photos"
    assert load(recipe_file("model: {weights: mine.pth}")).model.weights == str(tmp_path / "mine.pth")
    (block,) = load(recipe_file("grid: {weights: [none, ~/a.pth, IMAGENET1K_V1]}")).grid
    assert block.extra["weights"] == ("none", "/somewhere/a.pth", "IMAGENET1K_V1")


def test_imports_neither_torch_nor_ray():
    code = "import sys, raysweep.recipe; print(sorted({'torch', 'ray', 'timm', 'torchvision'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.strip() == "[]"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.epochs=7", lambda r: r.train.epochs == 7),
        ("train.weight_decay=1e-3", lambda r: r.train.weight_decay == 0.001),
        ("data.augment=[hflip]", lambda r: r.data.augment == ("hflip",)),
        ("data.normalize={mean: [0, 0, 0], std: [1, 1, 2]}", lambda r: r.data.normalize.std == (1, 1, 2)),
        ("data.augment=hflip", lambda r: r.data.augment == ("hflip",)),
        ("model.head.kind=keep", lambda r: r.model.head.kind == "keep"),
        ("model.head=stacked", lambda r: r.model.head.kind == "stacked"),
        ("model.head.kind=mlp", lambda r: r.model.head.sizes == (256,)),
        ("model.head={kind: mlp, sizes: 64}", lambda r: r.model.head.sizes == (64,)),
        ("grid.head=[keep, {kind: mlp, sizes: [8, 4]}]", lambda r: len(r.grid[0].extra["head"]) == 2),
        ("grid.normalize={mean: [0, 0, 0], std: [1, 1, 2]}", lambda r: len(r.grid[0].extra["normalize"]) == 1),
        ("asha.compare_within=depth", lambda r: r.asha.compare_within == ("depth",)),
        ("resources.gpus_per_worker=0", lambda r: r.resources.gpus_per_worker == 0),
        ("asha=null", lambda r: r.asha is None),
        ("asha.compare_within=[]", lambda r: r.asha.compare_within == ()),
        ("asha.guard=2", lambda r: r.asha.guard == 2.0),
        ("asha.guard=null", lambda r: r.asha.guard is None),
        ("objective=macro_f1", lambda r: r.objective == "macro_f1"),
        ("tolerance=1", lambda r: r.tolerance == 1.0),
        ("tolerance=0", lambda r: r.tolerance == 0.0),
        ("confidence=0.95", lambda r: r.confidence == 0.95),
        ("final.of=each-network", lambda r: r.final.of == "each-network"),
        ("grid.lr=[1e-3, 3e-4]", lambda r: r.grid[0].lr == (0.001, 0.0003)),
        (
            "grid.depth=[1, head, layer3, [layer1, fc]]",
            lambda r: r.grid[0].depth == (1, "head", "layer3", ("layer1", "fc")),
        ),
        ("grid.depth='3'", lambda r: r.grid[0].depth == (3,)),
        ("grid.batch_norm=[frozen, training]", lambda r: r.grid[0].extra == {"batch_norm": ("frozen", "training")}),
        ("description=a=b", lambda r: r.description == "a=b"),
    ],
)
def test_override(recipe_file, override, value):
    assert value(load(recipe_file("name: empty"), [override]))


def test_the_last_override_wins(recipe_file):
    assert load(recipe_file(""), ["train.epochs=2", "train.epochs=3"]).train.epochs == 3


def test_override_leaves_its_neighbours_alone(recipe_file):
    train = load(recipe_file("train: {epochs: 4, batch_size: 8}"), ["train.epochs=7"]).train
    assert (train.epochs, train.batch_size) == (7, 8)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], [("resnet18", 1, 0.001), ("resnet18", 3, 0.001), ("small_cnn", "all", 0.001)]),
        (["grid.lr=1e-2"], [("resnet18", 1, 0.01), ("resnet18", 3, 0.01), ("small_cnn", "all", 0.01)]),
        (["grid.depth=[2]"], [("resnet18", 2, 0.001)]),
        (["grid.backbone=resnet34"], [("resnet34", 1, 0.001), ("resnet34", 3, 0.001)]),
        (["grid.1.depth=[1]"], [("resnet18", 1, 0.001), ("resnet18", 3, 0.001), ("small_cnn", 1, 0.001)]),
        (["grid=[{backbone: vgg11}]", "grid.lr=0.5"], [("vgg11", 1, 0.5)]),
    ],
)
def test_blocks(recipe_file, overrides, expected):
    assert points(load(recipe_file(BLOCKS), overrides)) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: [1", ("my.yaml is not readable YAML", "line 1")),
        ("- 1\n- 2", ("my.yaml must hold a mapping", "`data:`")),
        ("data: {limit: 5}\ndata: {limit: 6}", ("not readable YAML", "duplicate key data")),
        ("x: !!python/object/apply:os.getcwd []", ("not readable YAML", "python/object")),
        ("name: a/b", ("name=a/b",)),
    ],
)
def test_bad_file(recipe_file, problems, text, parts):
    (problem,) = problems(recipe_file(text))
    for part in parts:
        assert part in problem


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("quickstar", r"no preset named quickstar; did you mean quickstart\?"),
        ("nowhere.yaml", r"no recipe file nowhere\.yaml; .*--list"),
    ],
)
def test_unknown_recipe(source, match):
    with pytest.raises(RecipeError, match=match):
        load(source)


@pytest.mark.parametrize(
    "text",
    [
        "grid: []",
        "grid: 5",
        "grid: [1]",
        "grid: word",
        "grid: {extra: 5}",
        "5",
        b"name: \xff",
        "name: a\0",
        r'data: {root: "a\0b"}',
        "a: !!map [1]",
        "a: 0" + "9" * 5_000,
    ],
)
def test_malformed_file_is_a_recipe_error(recipe_file, problems, text):
    problems(recipe_file(text))


def test_a_file_that_cannot_be_opened(recipe_file, problems, monkeypatch):
    path = recipe_file("")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    (problem,) = problems(path)
    assert problem.endswith("my.yaml is not readable: Permission denied")


PATHS = ("data.root", "features.dir")
TEXTS = (
    "a b", " a", "a ", "a #1", "#1", "[a", "[a]", "{a", "{a: b}", "${x}", "${", "a: b", ": ", "- a", "'a", '"a"', "*a",
    "&a", "!a", "|", "%a", "@a", "`a`", "a=b", "017", "1e5", "1:30", "true", "no", "été", "Null",
)  # fmt: skip
"""All of them mean something else in YAML, or in the readers of settings that know variables."""


@pytest.mark.parametrize("text", [*TEXTS, "~", "~x", "~/x"])
def test_a_description_is_taken_letter_by_letter(recipe_file, text):
    assert load(recipe_file("description: other"), [f"description={text}"]).description == text


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", [*PATHS, "model.weights"])
def test_paths_are_taken_letter_by_letter(recipe_file, tmp_path, monkeypatch, key, text):
    """A folder or file becomes absolute, and nothing else becomes of it."""
    monkeypatch.chdir(tmp_path)
    section, field = key.split(".")
    assert getattr(getattr(load(recipe_file(""), [f"{key}=in/{text}"]), section), field) == str(tmp_path / "in" / text)
    alone = getattr(getattr(load(recipe_file(""), [f"{key}={text}"]), section), field)
    assert alone == (text if key == "model.weights" else str(tmp_path / text))


def test_a_tilde_is_a_home(recipe_file, tmp_path, monkeypatch, problems):
    """At the start of a folder, and of a file of weights; a name of weights is as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somewhere")
    recipe = load(recipe_file(""), ["data.root=~/a b", "features.dir=b/~x", "model.weights=~x"])
    assert (recipe.data.root, recipe.features.dir) == ("/somewhere/a b", str(tmp_path / "b" / "~x"))
    assert recipe.model.weights == "~x"
    for override in ("data.root=~no-such-user", "features.dir=~no-such-user/x", "model.weights=~no-such-user/x.pth"):
        (problem,) = problems(recipe_file(""), override)
        assert problem.startswith(f"{override} is no path")


def test_null_alone_is_nothing(recipe_file):
    recipe = load(recipe_file("data: {root: /a}\nfeatures: {dir: /b}"), ["data.root=null", "features.dir=null"])
    assert (recipe.data.root, recipe.features.dir) == (None, None)


@pytest.mark.parametrize("text", ["017", "1e5", "true", "null.1", "a-b_c.d"])
def test_a_name_is_taken_letter_by_letter(recipe_file, text):
    assert load(recipe_file(""), [f"name={text}"]).name == text


@pytest.mark.parametrize("text", ["a b", "a #1", "[a", "{a", "~x", "${x}", "a: b", "a/b", "été", ""])
def test_what_a_name_may_not_be_is_shown_as_it_was_typed(recipe_file, problems, text):
    (problem,) = problems(recipe_file(""), f"name={text}")
    assert problem.startswith(f"name={text}: ")
    assert "pattern" in problem


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.epochs", ("train.epochs is not an override", "key=value")),
        ("=3", ("=3 is not an override", "key=value")),
        ("train.epochs=[1", ("train.epochs=[1", "not readable YAML")),
        ("train.epochs=017", ("train.epochs=017", "may be read as 17", "write 17")),
        ("grid.7.depth=3", ("grid.7.depth", "the grid has 1 block;", "grid.0.depth")),
        ("grid.0=3", ("grid.0", "the grid has 1 block;", "grid.0.depth")),
        ("grid=[]", ("grid=[]", "a mapping of axes")),
        ("grid=word", ("grid=word", "a mapping of axes", "{depth: [1, 3]}")),
        ("grid=[{depth: 1}, 2]", ('grid=[{"depth": 1}, 2]', "a list of such blocks")),
    ],
)
def test_bad_override(recipe_file, problems, override, parts):
    (problem,) = problems(recipe_file("name: one"), override)
    assert "\n" not in problem
    for part in parts:
        assert part in problem


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("~x=1", "~x"),
        ("grid.²=1", "²"),
        ("grid.٣.depth=1", "٣"),
        ("grid.999999.depth=1", "999999"),
        ("grid.-1.depth=1", "-1"),
        ("train.~values=1", "~values"),
        ("grid.~extra=1", "~extra"),
        ("train..epochs=1", ""),
        ("train.=1", ""),
        (".epochs=1", ""),
        (" train.epochs=1", " train"),
        ("train.epochs =1", "epochs "),
        ("--smoke=1", "--smoke"),
        ("é=1", "é"),
    ],
)
def test_bad_key(recipe_file, problems, override, part):
    (problem,) = problems(recipe_file("name: one"), override)
    key = override.rpartition("=")[0]
    assert problem == f"{key!r} is not a key of a recipe ({part!r}); keys are words such as train.epochs"


@pytest.mark.parametrize("path", ["~x", "train.~values", "grid.~extra", "grid.1.²", "model.head.a b"])
def test_bad_key_of_a_file(recipe_file, problems, path):
    *sections, key = path.split(".")
    text = f"{{'{key}': 1}}"
    for section in reversed(sections):
        text = f"[{{}}, {text}]" if section == "1" else f"{{{section}: {text}}}"
    (problem,) = problems(recipe_file(text))
    assert problem == f"{path!r} is not a key of a recipe; keys are words such as train.epochs"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("grid.weights=a #1.pth", "'#1.pth' is a comment in YAML; put the value in quotes"),
        ("train.epochs=5 # five", "'# five' is a comment"),
        ("grid.lr=[1, # one\n 2]", "'# one' is a comment"),
        ("train.epochs=#", "'#' is a comment"),
    ],
)
def test_a_value_on_the_command_line_is_not_cut_at_a_comment(recipe_file, problems, override, said):
    (problem,) = problems(recipe_file(""), override)
    assert said in problem


@pytest.mark.parametrize("text", ['"a #1.pth"', "'a #1.pth'", '["a #1.pth"]'])
def test_a_quoted_number_sign_is_part_of_the_value(recipe_file, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (block,) = load(recipe_file(""), [f"grid.weights={text}"]).grid
    assert block.extra["weights"] == (str(tmp_path / "a #1.pth"),)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.root=\udce9t\udce9", r"data.root='\udce9t\udce9' is no UTF-8; rename the file or folder"),
        ("data.root=a\0b", r"data.root='a\x00b' holds a NUL, which no name can; leave it out"),
        ('grid.backbone=["\\0"]', r"grid.backbone.0='\x00' holds a NUL"),
        ("description=\udce9", r"description='\udce9' is no UTF-8"),
    ],
)
def test_text_that_is_no_unicode(recipe_file, problems, override, said):
    (problem,) = problems(recipe_file(""), override)
    assert problem.startswith(said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.dataset=fake:²", "fake images have 2 to 10,000 classes, such as fake:10"),
        ("data.dataset=fake:4294967296", "fake images have 2 to 10,000 classes"),
        ("model.head={kind: mlp, sizes: [9223372036854775808]}", "must be less than or equal to 1048576"),
        ("grid.seed=4294967296", "must be less than 4294967296"),
        ("train.epochs=1000000001", "must be less than or equal to 1000000000"),
        ("asha.reduction_factor=1.0001", "must be greater than or equal to 1.1"),
        ("asha.reduction_factor=1e308", "must be less than or equal to 1000"),
        ("train.epochs=1:30", "train.epochs=1:30: must be a valid integer"),
        ("train.epochs=!!int 'x'", "x is no whole number"),
        ("grid.lr=&a [*a]", "the value of &a holds itself"),
    ],
)
def test_numbers_beyond_reason_and_what_is_no_number(recipe_file, problems, override, said):
    (problem,) = problems(recipe_file(""), override)
    assert said in problem
