import subprocess
import sys

import pytest
import yaml

from raysweep.sweep.ledger import Ledger
from raysweep.recipe import Block, Head, Recipe, RecipeError, Statistics, depth_label, dump, load, near, preset_names

BLOCKS = """
name: two
grid:
  - {backbone: [resnet18], depth: [1, 3], lr: [1.0e-3]}
  - {backbone: [small_cnn], depth: [all], lr: [1.0e-3], weights: none, image_size: 32}
"""


@pytest.fixture
def recipe_file(tmp_path):
    def write(text):
        path = tmp_path / "my.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def problems(source, *overrides):
    with pytest.raises(RecipeError) as caught:
        load(source, overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def points(recipe):
    return [(trial.backbone, trial.depth, trial.lr) for trial in recipe.trials()]


# ---- reading ----


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_complete(name):
    recipe = load(name)
    assert recipe.name == name
    assert recipe.description
    assert recipe.trials()


def test_quickstart_is_the_first_preset_and_the_default():
    assert preset_names()[0] == "quickstart"
    assert load() == load("quickstart")


def test_empty_file_is_all_defaults(recipe_file):
    assert load(recipe_file("")) == Recipe()


def test_dump_is_read_back_to_an_equal_recipe(recipe_file):
    recipe = load(recipe_file(BLOCKS), ["grid.depth=[1, head, [layer1, fc]]", "grid.batch_norm=[frozen, training]"])
    again = load(recipe_file(yaml.safe_dump(dump(recipe))))
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
asha: null
resources: {gpus_per_worker: 0.5}
features: {cache: false}
"""


@pytest.mark.parametrize("text", ["", BLOCKS, EVERYTHING])
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
    assert load(recipe_file(yaml.safe_dump(dump(recipe)))) == recipe
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


# ---- overrides ----


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


# ---- trials ----


def test_the_last_axis_is_fastest():
    block = {"backbone": ["a", "b"], "depth": [1, "all"], "lr": 0.1, "seed": [0, 1], "epochs": [3]}
    got = [(t.backbone, t.depth, t.seed) for t in Recipe.model_validate({"grid": block}).trials()]
    assert got == [(b, d, s) for b in "ab" for d in (1, "all") for s in (0, 1)]


def test_an_extra_axis_sets_its_field():
    recipe = Recipe.model_validate({"grid": {"image_size": [32, 64], "optimizer": "sgd", "weights": "none"}})
    got = [(t.data.image_size, t.train.optimizer, t.model.weights) for t in recipe.trials()]
    assert got == [(32, "sgd", "none"), (64, "sgd", "none")]


def test_statistics_are_one_value_of_an_axis():
    grid = {"normalize": {"mean": [0, 0, 0], "std": [1, 1, 2]}}
    (one,) = Recipe.model_validate({"grid": grid}).trials()
    assert one.data.normalize == Statistics(mean=(0, 0, 0), std=(1, 1, 2))
    two = Recipe.model_validate({"grid": {"normalize": ["none", grid["normalize"]]}}).trials()
    assert [trial.data.normalize for trial in two] == ["none", one.data.normalize]


def test_a_head_is_one_value_of_an_axis():
    grid = {"head": ["keep", {"kind": "mlp", "sizes": [8, 4]}, {"kind": "linear"}]}
    heads = [trial.model.head for trial in Recipe.model_validate({"grid": grid}).trials()]
    assert heads == [Head(kind="keep"), Head(kind="mlp", sizes=(8, 4)), Head()]


@pytest.mark.parametrize(
    ("head", "label"),
    [
        ({}, "linear"),
        ({"kind": "stacked"}, "stacked"),
        ({"kind": "mlp"}, "mlp 256"),
        ({"kind": "mlp", "sizes": (8, 4), "dropout": 0.5, "activation": "none"}, "mlp 8-4 activation=none dropout=0.5"),
    ],
)
def test_label_of_a_head(head, label):
    assert Head(**head).label == label


def test_a_head_holds_only_what_applies():
    assert Head().model_dump() == {"kind": "linear"}
    assert set(Head(kind="mlp").model_dump()) == {"kind", "sizes", "activation", "dropout", "hidden_dropout"}


def test_each_configuration_comes_once():
    grid = [{"depth": [1, "1", 2]}, {"depth": [2, 3], "epochs": Recipe().train.epochs}]
    assert [trial.depth for trial in Recipe.model_validate({"grid": grid}).trials()] == [1, 2, 3]


def test_name_is_the_hash_of_the_configuration():
    one, same = (Recipe.model_validate({"grid": {"lr": lr}}).trials()[0] for lr in (1, 1.0))
    assert one.name == same.name
    assert len(one.name) == 12
    assert set(one.name) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "change",
    [
        {"grid": {"backbone": "resnet18"}},
        {"grid": {"depth": 2}},
        {"grid": {"depth": "all"}},
        {"grid": {"lr": 0.002}},
        {"grid": {"seed": 1}},
        {"grid": {"batch_norm": "training"}},
        {"data": {"dataset": "fake"}},
        {"data": {"image_size": 32}},
        {"data": {"augment": ["hflip"]}},
        {"data": {"split_seed": 1}},
        {"model": {"weights": "none"}},
        {"model": {"head": "keep"}},
        {"model": {"head": {"kind": "mlp"}}},
        {"train": {"epochs": 11}},
        {"train": {"momentum": 0.8}},
    ],
)
def test_name_changes_with_every_field(change):
    assert Recipe.model_validate(change).trials()[0].name != Recipe().trials()[0].name


@pytest.mark.parametrize("change", [{"name": "other"}, {"asha": None}, {"grid": {"lr": [0.001, 0.1]}}])
def test_name_does_not_change_with_what_other_trials_do(change):
    assert Recipe.model_validate(change).trials()[0].name == Recipe().trials()[0].name


def test_name_is_the_same_in_every_process():
    """Names identify trials across runs and machines, so they may not depend on Python's own hashing."""
    code = "from raysweep.recipe import Recipe; print(Recipe().trials()[0].name)"
    names = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in "12"
    }
    assert names == {Recipe().trials()[0].name}


def test_recipe_is_immutable():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().train.epochs = 3


@pytest.mark.parametrize(("depth", "label"), [(3, "3"), ("all", "all"), (("layer1", "fc"), "layer1+fc")])
def test_depth_label(depth, label):
    assert depth_label(depth) == label


# ---- mistakes ----


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        # an unknown key: path, and what was meant
        ("dataa=1", ("dataa is not a key", "did you mean data?")),
        ("data.imagesize=64", ("data.imagesize is not a key", "image_size")),
        ("train.epoch=3", ("train.epoch is not a key", "did you mean epochs")),
        ("model.head.knd=linear", ("model.head.knd is not a key", "kind")),
        ("asha.grace=1", ("asha.grace is not a key", "grace_epochs")),
        ("grid.dept=3", ("grid.dept is not a key", "did you mean depth")),
        ("zzzz=3", ("zzzz is not a key", "choose one of name, description, data")),
        # a wrong type or value: path, value, what is allowed
        ("train.epochs=five", ("train.epochs=five", "integer")),
        ("train.epochs=1.5", ("train.epochs=1.5", "integer")),
        ("train.epochs=0", ("train.epochs=0", "greater than or equal to 1")),
        ("train.optimizer=rmsprop", ("train.optimizer=rmsprop", "'adam', 'adamw' or 'sgd'")),
        ("data.val_fraction=1", ("data.val_fraction=1", "less than 1")),
        ("data.augment=[vflip]", ("data.augment.0=vflip", "'hflip'")),
        ("grid.backbone=[18]", ("grid.backbone.0=18", "string")),
        ("grid.lr=0", ("grid.lr.0=0", "greater than 0")),
        ("grid.lr=.nan", ("grid.lr.0=nan", "finite")),
        ("grid.seed=-1", ("grid.seed.0=-1", "greater than or equal to 0")),
        ("grid.image_size=[32, 4]", ("grid.image_size=4", "greater than or equal to 8")),
        ("asha.compare_within=[dept]", ("asha.compare_within=dept", "did you mean depth")),
        ("train=3", ("train=3", "a mapping")),
        # depths
        ("grid.depth=0", ("grid.depth.0=0", "depth 0 trains nothing", "1 is the classifier alone")),
        ("grid.depth=[1, -3]", ("grid.depth.1=-3", "depth -3 trains nothing")),
        ("grid.depth=1.5", ("grid.depth.0=1.5", "a number of layers, 'head', 'all'")),
        ("grid.depth=true", ("grid.depth.0=true", "a number of layers")),
        ("grid.depth=[[1, 2]]", ("grid.depth.0", "module patterns, such as [layer1, fc]")),
        # axes and overrides
        ("grid.lr=[]", ("grid.lr", "at least one value")),
        ("grid.7.depth=3", ("grid.7.depth", "the grid has 1 block", "grid.0.depth")),
        ("train.epochs", ("train.epochs is not an override", "key=value")),
        ("=3", ("=3 is not an override", "key=value")),
        ("train.epochs=[1", ("train.epochs=[1", "not readable YAML")),
    ],
)
def test_bad_override(recipe_file, override, parts):
    (problem,) = problems(recipe_file("name: one"), override)
    assert "\n" not in problem
    for part in parts:
        assert part in problem


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
def test_bad_file(recipe_file, text, parts):
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


def test_all_problems_at_once(recipe_file):
    text = "train: {epochs: 0, batchsize: 3}\ngrid:\n  - {depth: [0]}\n  - {lr: -1}\nfoo: 1"
    found = problems(recipe_file(text))
    assert len(found) == 5
    for path in ("train.epochs=0", "train.batchsize", "grid.depth.0=0", "grid.1.lr.0=-1", "foo"):
        assert sum(problem.startswith(path) for problem in found) == 1


def test_problem_of_a_later_block_names_it(recipe_file):
    (problem,) = problems(recipe_file(BLOCKS), "grid.1.image_size=4")
    assert problem.startswith("grid.1.image_size=4")


@pytest.mark.parametrize(
    "text", ["grid: []", "grid: 5", "grid: [1]", "grid: word", "grid: {extra: 5}", "5", b"name: \xff"]
)
def test_malformed_file_is_a_recipe_error(recipe_file, text):
    problems(recipe_file(text))


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("grid.lr=.inf", ("grid.lr", "finite")),
        ("grid.extra={foo: [1]}", ("grid.extra is not a key",)),
        ("grid.zzzz=3", ("grid.zzzz is not a key", "choose one of backbone, depth")),
        ("grid.weights=[]", ("grid.weights=[]", "at least one value")),
        ("data.normalize=zzz", ("data.normalize=zzz", "'backbone', 'dataset' or 'none'", "{mean: ")),
        ("data.normalize=5", ("data.normalize=5", "'backbone', 'dataset' or 'none'")),
        ("grid.normalize=zzz", ("grid.normalize=zzz", "'backbone', 'dataset' or 'none'")),
        ("grid.normalize={mean: [0, 0, 0], std: [1, 1, 0]}", ("grid.normalize.std.2=0", "greater than 0")),
        ("grid.optimizer=model.pth", ("grid.optimizer=model.pth", "'adam', 'adamw' or 'sgd'")),
        ("resources.gpus_per_worker=-1", ("resources.gpus_per_worker=-1", "'auto' or", "greater than or equal to 0")),
        ("resources.gpus_per_worker=true", ("resources.gpus_per_worker=true", "'auto' or a number")),
        ("resources.gpus_per_worker=.inf", ("resources.gpus_per_worker=inf", "'auto' or a number")),
        ("train.weight_decay=.inf", ("train.weight_decay=inf", "finite")),
        ("grid.lr=true", ("grid.lr.0=true", "a valid number")),
        ("grid.seed=true", ("grid.seed.0=true", "a valid integer")),
        ("train.epochs=true", ("train.epochs=true", "a valid integer")),
        ("grid=[]", ("grid=[]", "a mapping of axes")),
        ("grid=word", ("grid=word", "a mapping of axes", "{depth: [1, 3]}")),
        ("grid=[{depth: 1}, 2]", ('grid=[{"depth": 1}, 2]', "a list of such blocks")),
        ("grid.extra=5", ("grid.extra is not a key",)),
        ("grid.7.depth=3", ("the grid has 1 block;",)),
        ("model.head.kind=deep", ("model.head.kind=deep", "'linear', 'mlp', 'keep' or 'stacked'")),
        ("model.head=5", ("model.head=5", "must be a mapping")),
        ("model.head.sizes=[8]", ("model.head: only kind: mlp has sizes", "write model.head={kind: linear}")),
        ("model.head={kind: mlp, sizes: []}", ("model.head.sizes=[]", "at least one value")),
        ("model.head={kind: mlp, sizes: [8, 0]}", ("model.head.sizes.1=0", "greater than or equal to 1")),
        ("model.head={kind: mlp, dropout: 1}", ("model.head.dropout=1", "less than 1")),
        ("grid.head=deep", ("grid.head.kind=deep", "'mlp'")),
    ],
)
def test_unclear_mistake(recipe_file, override, parts):
    (problem,) = problems(recipe_file("name: one"), override)
    for part in parts:
        assert part in problem


def test_an_unknown_key_of_statistics_says_which_there_are(recipe_file):
    *missing, problem = problems(recipe_file(""), "data.normalize.foo=1")
    assert problem == "data.normalize.foo is not a key of a recipe; choose one of mean, std"
    assert [problem.partition(":")[0] for problem in missing] == ["data.normalize.mean", "data.normalize.std"]


def test_a_file_that_cannot_be_opened(recipe_file, monkeypatch):
    path = recipe_file("")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    (problem,) = problems(path)
    assert problem.endswith("my.yaml is not readable: Permission denied")


def test_near_does_not_list_everything():
    hint = near("zzz", [f"module{index}" for index in range(1_200)])
    assert hint.startswith("choose one of module0, module1, ")
    assert hint.endswith("module29, … (1,200 in all)")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Depht", "did you mean depth?"), ("qqqq", "choose one of depth, lr, seed")],
)
def test_near(name, hint):
    assert near(name, ["depth", "lr", "seed"]) == hint


def test_block_is_usable_from_python():
    assert Recipe(grid=(Block(depth=(2,)),)).trials()[0].depth == 2


def test_phases_in_words():
    grid = {"backbone": "small_cnn", "depth": "all"}
    phases = [{"depth": "head", "epochs": 1, "lr": 1e-3}, {"depth": ["stem", "head"]}, {"optimizer": "sgd"}]
    (trial,) = Recipe.model_validate({"grid": grid, "train": {"epochs": 4, "phases": phases}}).trials()
    assert trial.phases_label == (
        "head for 1 epoch (lr=0.001), then stem+head for 4 epochs, then all for 4 epochs (optimizer=sgd)"
    )
    (plain,) = Recipe.model_validate({"grid": grid}).trials()
    assert plain.phases_label == ""
