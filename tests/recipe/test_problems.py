"""Sentences about mistakes: the field, its value, what is allowed."""

import pytest


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
        ("grid.zzzz=3", ("grid.zzzz is not a key", "choose one of backbone, depth")),
        ("grid.extra=5", ("grid.extra is not a key",)),
        ("grid.extra={foo: [1]}", ("grid.extra is not a key",)),
        ("zzzz=3", ("zzzz is not a key", "choose one of name, description, data")),
        # a wrong type or value: path, value, what is allowed
        ("train.epochs=five", ("train.epochs=five", "integer")),
        ("train.epochs=1.5", ("train.epochs=1.5", "integer")),
        ("train.epochs=true", ("train.epochs=true", "a valid integer")),
        ("train.epochs=0", ("train.epochs=0", "greater than or equal to 1")),
        ("train.optimizer=lbfgs", ("train.optimizer=lbfgs", "'adam', 'adamw', 'sgd'", "'lion'")),
        ("train.weight_decay=.inf", ("train.weight_decay=inf", "finite")),
        ("train=3", ("train=3", "a mapping")),
        ("data.val_fraction=1", ("data.val_fraction=1", "less than 1")),
        ("data.augment=[vflip]", ("data.augment.0=vflip", "'hflip'", "'crop'")),
        ("data.crop_scale=[1, 0.5]", ("data.crop_scale", "low below high")),
        ("data.views=0", ("data.views=0", "greater than or equal to 1")),
        ("train.mixup=-1", ("train.mixup=-1", "greater than or equal to 0")),
        ("data.normalize=zzz", ("data.normalize=zzz", "'backbone', 'dataset' or 'none'", "{mean: ")),
        ("data.normalize=5", ("data.normalize=5", "'backbone', 'dataset' or 'none'")),
        ("resources.gpus_per_worker=-1", ("resources.gpus_per_worker=-1", "'auto' or", "greater than or equal to 0")),
        ("resources.gpus_per_worker=true", ("resources.gpus_per_worker=true", "'auto' or a number")),
        ("resources.gpus_per_worker=.inf", ("resources.gpus_per_worker=inf", "'auto' or a number")),
        # axes
        ("grid.backbone=[18]", ("grid.backbone.0=18", "string")),
        ("grid.lr=[]", ("grid.lr", "at least one value")),
        ("grid.lr=0", ("grid.lr.0=0", "greater than 0")),
        ("grid.lr=.nan", ("grid.lr.0=nan", "finite")),
        ("grid.lr=.inf", ("grid.lr", "finite")),
        ("grid.lr=true", ("grid.lr.0=true", "a valid number")),
        ("grid.seed=-1", ("grid.seed.0=-1", "greater than or equal to 0")),
        ("grid.seed=true", ("grid.seed.0=true", "a valid integer")),
        ("grid.image_size=[32, 4]", ("grid.image_size=4", "greater than or equal to 8")),
        ("grid.weights=[]", ("grid.weights=[]", "at least one value")),
        ("grid.normalize=zzz", ("grid.normalize=zzz", "'backbone', 'dataset' or 'none'")),
        ("grid.normalize={mean: [0, 0, 0], std: [1, 1, 0]}", ("grid.normalize.std.2=0", "greater than 0")),
        ("grid.optimizer=model.pth", ("grid.optimizer=model.pth", "'adam', 'adamw', 'sgd'")),
        ("train.precision=fp16", ("train.precision=fp16", "'float32', 'tf32', 'bfloat16' or 'float16'")),
        ("features.precision=none", ("features.precision=none", "'float32', 'tf32', 'bfloat16' or 'float16'")),
        ("train.compile=max-autotune", ("train.compile=max-autotune", "true, false or reduce-overhead")),
        ("train.compile=1", ("train.compile=1", "true, false or reduce-overhead")),
        ("train.layer_decay=0", ("train.layer_decay=0", "greater than 0")),
        ("train.ema=1", ("train.ema=1", "less than 1")),
        ("train.warmup_epochs=11", ("grid: train.warmup_epochs=11 is more than the 10 epochs", "at most 10")),
        ("train={optimizer: sgd, nesterov: true, momentum: 0}", ("grid: train.nesterov=true", "train.momentum=0")),
        ("train.phases=[{epochs: 2, warmup_epochs: 3}]", ("train.warmup_epochs=3", "the 2 epochs")),
        ("grid.head=deep", ("grid.head.kind=deep", "'mlp'")),
        ("asha.compare_within=[dept]", ("asha.compare_within=dept", "did you mean depth")),
        # the comparison, and early stopping
        ("objective=top5", ("objective=top5", "'accuracy', 'balanced_accuracy', 'macro_f1' or 'loss'")),
        ("tolerance=-1", ("tolerance=-1", "greater than or equal to 0")),
        ("tolerance=101", ("tolerance=101", "less than or equal to 100")),
        ("tolerance=half", ("tolerance=half", "a valid number")),
        ("confidence=0.5", ("confidence=0.5", "greater than 0.5")),
        ("confidence=1", ("confidence=1", "less than 1")),
        ("confidence=90", ("confidence=90", "less than 1")),
        ("asha.guard=0", ("asha.guard=0", "greater than 0")),
        ("asha.guard=true", ("asha.guard=true", "a valid number")),
        ("asha={guard: 3, compare_within: [depth]}", ("asha: compare_within=['depth']", "set asha.guard=null")),
        ("final.of=worst", ("final.of=worst", "'recommended', 'best', 'each-network' or 'all'")),
        # depths
        ("grid.depth=0", ("grid.depth.0=0", "depth 0 trains nothing", "1 is the classifier alone")),
        ("grid.depth=[1, -3]", ("grid.depth.1=-3", "depth -3 trains nothing")),
        ("grid.depth=1.5", ("grid.depth.0=1.5", "a number of layers, 'head', 'all'")),
        ("grid.depth=true", ("grid.depth.0=true", "a number of layers")),
        ("grid.depth=[[1, 2]]", ("grid.depth.0", "module patterns, such as [layer1, fc]")),
        # heads
        ("model.head=5", ("model.head=5", "must be a mapping")),
        ("model.head.kind=deep", ("model.head.kind=deep", "'linear', 'mlp', 'keep' or 'stacked'")),
        ("model.head.sizes=[8]", ("model.head: only kind: mlp has sizes", "write model.head={kind: linear}")),
        ("model.head={kind: mlp, sizes: []}", ("model.head.sizes=[]", "at least one value")),
        ("model.head={kind: mlp, sizes: [8, 0]}", ("model.head.sizes.1=0", "greater than or equal to 1")),
        ("model.head={kind: mlp, dropout: 1}", ("model.head.dropout=1", "less than 1")),
    ],
)
def test_one_sentence(recipe_file, problems, override, parts):
    (problem,) = problems(recipe_file("name: one"), override)
    assert "\n" not in problem
    for part in parts:
        assert part in problem


def test_all_problems_at_once(recipe_file, problems):
    text = "train: {epochs: 0, batchsize: 3}\ngrid:\n  - {depth: [0]}\n  - {lr: -1}\nfoo: 1"
    found = problems(recipe_file(text))
    assert len(found) == 5
    for path in ("train.epochs=0", "train.batchsize", "grid.depth.0=0", "grid.1.lr.0=-1", "foo"):
        assert sum(problem.startswith(path) for problem in found) == 1


def test_problem_of_a_later_block_names_it(recipe_file, problems):
    text = "grid:\n  - {backbone: resnet18}\n  - {backbone: small_cnn, image_size: 32}"
    (problem,) = problems(recipe_file(text), "grid.1.image_size=4")
    assert problem.startswith("grid.1.image_size=4")


def test_an_unknown_key_of_statistics_says_which_there_are(recipe_file, problems):
    *missing, problem = problems(recipe_file(""), "data.normalize.foo=1")
    assert problem == "data.normalize.foo is not a key of a recipe; choose one of mean, std"
    assert [problem.partition(":")[0] for problem in missing] == ["data.normalize.mean", "data.normalize.std"]
