"""Whatever a person writes into a recipe or an override, the answer is a plan or a clear sentence."""

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from raysweep.recipe import RecipeError, dump, load, yaml_core
from raysweep.recipe.grid import KNOWN_KEYS
from raysweep.sweep.plan import plan
from raysweep.sweep.rungs import milestones

EXAMPLES = 2_000
SMALL = "{name: fuzz, data: {dataset: fake:4, image_size: 32}, grid: {backbone: small_cnn}, model: {weights: none}}"
KEYS = [f"{section}.{key}".lstrip(".") for section, keys in KNOWN_KEYS.items() for key in keys]
ODD_KEYS = [
    "~x",
    "grid.²",
    "grid.0.depth",
    "grid.1.lr",
    "grid.-1",
    "grid",
    "data",
    "train.phases.0.depth",
    "",
    "a.b",
    "é",
]
ODD = (
    "~", "null", "true", "no", "017", "1:30", "1_0", "0x1f", "1e400", "-1e400", ".nan", ".inf", "1e-320", "0", "-1",
    "2",
    "4294967296", "9223372036854775808", "9" * 400, "0.5", "1", "3", "[", "]", "{", "}", "[]", "{}", "[[]]", "[1, [2]]",
    "[null]", "{a: 1}", "{1: 2}", "{~: 1}", "{? [a] : b}", "!!int 'x'", "!!int x", "!!float y", "!!bool z", "!!map [1]",
    "!!python/object/apply:os.getcwd []", "!x y", "*a", "&a [*a]", "&a 1", "a: b: c", "- 1", "? x", "|", ">", "%x", "@",
    "`", "'", '"', '"\\ud800"', '"\\0"', "\0", "\udce9", "²", "٣", "fake:²", "fake:4294967296", "fake:0", "fake:3",
    "fake:-1", "fake:", "digits", "cifar10", "imagefolder", "torchvision:", "torchvision:MNIST", "/", "/dev/null",
    "~/x",
    "~nouser/x", "a/../b", "x.pth", "/dev/null/x.pth", "a #1", "#", " ", "\n", "\t", "\u2028", "\ufeff", "head", "all",
    "stage1", "[stage1, head]", "[h*]", "[zzz]", "keep", "mlp", "{kind: mlp, sizes: [9223372036854775808]}", "linear",
    "{kind: mlp, sizes: []}", "{kind: keep, sizes: 3}", "small_cnn", "[small_cnn, cnn_1m]", "timm/", "timm/.",
    "resnet18.",
    "training", "recalibrated", "hflip", "[hflip, hflip]", "dataset", "{mean: [0, 0, 0], std: [1, 1, 1]}",
    "{mean: [0, 0], std: [0, 1, 1]}", "[{depth: 1}]", "[{}, {}]", "[{epochs: 1, depth: zzz}, {lr: 0}]", "{guard: null}",
    "{compare_within: [depth], guard: 2}", "{compare_within: [zzz]}", "always", "float16", "sgd", "cosine", "best_loss",
)  # fmt: skip
"""What was found to break it, or looks as if it might."""

NUMBERS = (
    "data.image_size", "data.val_fraction", "data.test_fraction", "data.split_seed", "data.limit", "grid.depth",
    "grid.lr",
    "grid.seed", "train.epochs", "train.batch_size", "train.weight_decay", "train.momentum", "train.step_gamma",
    "train.label_smoothing", "train.clip_norm", "train.patience", "tolerance", "confidence", "asha.grace_epochs",
    "asha.reduction_factor", "asha.guard", "resources.workers_per_trial", "resources.gpus_per_worker",
    "features.budget_gb", "final.workers",
)  # fmt: skip
FITTING = (
    "grid.depth=[1, head, all, stage2, [stage1, head]]", "grid.backbone=[small_cnn, cnn_846k]",
    "grid.head=[linear, mlp]",
    "grid.batch_norm=[frozen, recalibrated, training]", "data.augment=hflip", "data.normalize=dataset", "asha=null",
    "train.phases=[{depth: head, epochs: 1}, {}]", "model.head={kind: mlp, sizes: [1048576, 2]}",
    "data.dataset=fake:10000",
    "data.dataset=digits", "data.dataset=cifar100", "grid.image_size=[8, 1024]", "grid.weights=[none]",
    "train.keep=best_loss",
    "objective=loss", "features.cache=always", "asha.compare_within=[depth]", "model.batch_norm=training",
)  # fmt: skip

values = st.one_of(
    st.sampled_from(ODD),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=8),
    st.lists(st.sampled_from(ODD), max_size=3).map(lambda found: f"[{', '.join(found)}]"),
)
keys = st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), st.sampled_from(ODD_KEYS), st.text(max_size=6))
numbers = st.one_of(
    st.sampled_from(["0", "1", "2", "1e-300", "0.5", "0.999999999", "1e308", "1000000000", "4294967295"]),
    st.integers(0, 100).map(str),
    st.floats(0, 1).map(str),
)
overrides = st.one_of(
    st.tuples(st.sampled_from(NUMBERS), numbers).map("=".join),
    st.sampled_from(FITTING),
    st.tuples(keys, values).map("=".join),
)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.sampled_from(ODD),
    st.sampled_from(ODD).map(lambda text: f"!!!{text}"),
)  # fmt: skip
words = st.sampled_from(sorted({part for key in [*KEYS, *ODD_KEYS] for part in key.split(".")}))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=4)),
    max_leaves=8,
)


def written(tree):
    """YAML text of a tree, in which text that begins with !!! stands as it is."""
    if isinstance(tree, dict):
        return (
            "{" + ", ".join(f"{yaml_core.dumps(key).split()[0]}: {written(value)}" for key, value in tree.items()) + "}"
        )
    if isinstance(tree, list):
        return "[" + ", ".join(map(written, tree)) + "]"
    if isinstance(tree, str) and tree.startswith("!!!"):
        return tree.removeprefix("!!!")
    return repr(tree)


files = st.one_of(
    st.just(SMALL),
    st.just(SMALL),
    st.just(SMALL),
    st.text(max_size=30),
    st.dictionaries(st.sampled_from(sorted({*KNOWN_KEYS} - {""})), trees, max_size=3).map(written),
    st.tuples(st.sampled_from(KEYS), values).map(lambda pair: nested(*pair)),
)


def nested(path, text):
    """A file that sets one field."""
    for part in reversed(path.split(".")):
        text = f"{{{part}: {text}}}"
    return text


def answered(path, text, given_overrides):
    """Plan a recipe, or be told what is wrong with it."""
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        recipe = load(str(path), given_overrides)
        again = path.with_name("again.yaml")
        again.write_text(yaml_core.dumps(dump(recipe)), encoding="utf-8")
        assert load(str(again)) == recipe
        if recipe.asha:
            assert len(milestones(recipe.asha.grace_epochs, recipe.train.epochs, recipe.asha.reduction_factor)) < 1_000
        plan(recipe)
    except RecipeError as error:
        assert error.problems
        for problem in error.problems:
            assert problem
            assert "\n" not in problem


@pytest.mark.slow
@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_plan_or_a_sentence(tmp_path, monkeypatch, start):
    monkeypatch.chdir(tmp_path)

    @seed(start)
    @settings(max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(files, st.lists(overrides, max_size=3))
    def check(text, given_overrides):
        answered(tmp_path / "fuzz.yaml", text, given_overrides)

    check()
