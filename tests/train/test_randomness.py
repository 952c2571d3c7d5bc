"""Dropout and stochastic depth are drawn for the whole batch, whoever computes a share of it."""

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

from raysweep.train.ddp import World
from raysweep.train.randomness import Draws, WholeBatchDropout, WholeBatchDropPath, draw_for_the_whole_batch

KINDS = {
    "values": (lambda: nn.Dropout(0.4), (6,)),
    "values of tokens": (lambda: nn.Dropout(0.4), (5, 6)),
    "channels of signals": (lambda: nn.Dropout1d(0.4), (6, 5)),
    "channels of maps": (lambda: nn.Dropout2d(0.4), (6, 3, 2)),
    "channels of volumes": (lambda: nn.Dropout3d(0.4), (6, 2, 3, 2)),
    "rows": (lambda: StochasticDepth(0.4, "row"), (4, 3, 2)),
    "the batch": (lambda: StochasticDepth(0.4, "batch"), (4, 3, 2)),
    "paths": (lambda: DropPath(0.4), (5, 6)),
}
BATCHES = [7, 10, 2, 1]
"""No multiple of any number of ranks; with 2 and 1 images some ranks of 3 and 5 have none."""


def replaced(module, world=None):
    """What takes a module's place, and what it draws from."""
    draws = Draws(world or World())
    network = nn.Sequential(module)
    draw_for_the_whole_batch(network, draws)
    return network, draws


def step(module, values, world=None, seed=1, parts=1):
    """This rank's share of a step; every image has so many parts, one after the other."""
    world = world or World()
    network, draws = replaced(module, world)
    images = len(values) // parts
    draws.begin(seed, images)
    return network(values.unflatten(0, (images, parts))[world.rank :: world.size].flatten(0, 1))


def ones(images, shape, parts=1):
    return torch.ones(images * parts, *shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", BATCHES)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_ranks_draw_their_rows_of_one_mask(kind, images, size):
    make, shape = KINDS[kind]
    whole = step(make(), ones(images, shape))
    for rank in range(size):
        assert torch.equal(step(make(), ones(images, shape), World(rank, size)), whole[rank::size])


@pytest.mark.parametrize("images", [7, 2])
@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("kind", ["values of tokens", "channels of maps", "rows", "paths"])
def test_parts_of_an_image_stay_together(kind, size, images):
    """As windows of a Swin transformer: a rank has all parts of its images, each part drawn on its own."""
    make, shape = KINDS[kind]
    whole = step(make(), ones(images, shape, 4), parts=4)
    assert len({tuple(row.flatten().tolist()) for row in whole}) > 1
    for rank in range(size):
        found = step(make(), ones(images, shape, 4), World(rank, size), parts=4)
        assert torch.equal(found, whole.unflatten(0, (images, 4))[rank::size].flatten(0, 1))


@pytest.mark.parametrize(
    ("kind", "together"),
    [
        ("values", ()),
        ("channels of signals", (2,)),
        ("channels of maps", (2, 3)),
        ("channels of volumes", (2, 3, 4)),
        ("rows", (1, 2, 3)),
        ("paths", (1, 2)),
        ("the batch", (0, 1, 2, 3)),
    ],
)
def test_what_is_dropped_together(kind, together):
    """Along these axes all values share one fate, along the others not; what is kept is scaled up."""
    make, shape = KINDS[kind]
    steps = torch.stack([step(make(), ones(64, shape), seed=seed) for seed in range(20)])
    assert steps.unique().tolist() == pytest.approx([0, 1 / 0.6])
    for axis in range(steps.dim() - 1):
        alike = bool((steps.narrow(axis + 1, 0, 1) == steps).all())
        assert alike == (axis in together), axis


@pytest.mark.parametrize("kind", KINDS)
def test_means_stay(kind):
    """Over 4,000 independent draws, each 0 or 1 / 0.6: five standard errors of 0.816 / √4000."""
    make, shape = KINDS[kind]
    network, draws = replaced(make())
    found = []
    for seed in range(4000 if kind == "the batch" else 1):
        draws.begin(seed, 4000)
        found.append(network(ones(1 if kind == "the batch" else 4000, shape))[:, :1].flatten(1)[:, 0])
    assert torch.cat(found).mean() == pytest.approx(1, abs=5 * 0.816 / 4000**0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_repeated_step_draws_the_same(kind):
    make, shape = KINDS[kind]
    network, draws = replaced(nn.Sequential(make(), nn.Identity(), make()))
    values = ones(32, shape)

    def twenty(first):
        """Of each of 20 steps what the two modules draw."""
        found = []
        for seed in range(first, first + 20):
            draws.begin(seed, 32)
            torch.rand(seed)  # whatever else draws
            found.append((network[0][0](values), network[0][2](values)))
        return torch.stack([one for one, _ in found]), torch.stack([other for _, other in found])

    first, second = twenty(0)
    again = twenty(0)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, twenty(20)[0])
    assert not torch.equal(first[1:], first[:-1])


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_left_alone_in_eval_mode(kind):
    make, shape = KINDS[kind]
    network, draws = replaced(make().eval())
    assert isinstance(network[0], WholeBatchDropout | WholeBatchDropPath)
    assert not network[0].training  # as what it stands for
    values = torch.randn(7, *shape)
    draws.begin(1, 7)
    assert torch.equal(network[0](values), values)
    assert not torch.equal(network.train()(values), values)
    assert torch.equal(network.eval()(values), values)


@pytest.mark.parametrize(
    "module",
    [nn.Dropout(0.0), nn.Dropout2d(0.0), StochasticDepth(0.0, "row"), DropPath(0.0), nn.Identity(), nn.Linear(6, 6)],
)
def test_what_drops_nothing_stays(module):
    network, draws = replaced(module)
    assert network[0] is module
    values = torch.randn(4, 6, 3, 6)
    draws.begin(1, 4)
    expected = module(values)
    assert torch.equal(network(values), expected)


def test_what_drops_everything_stays():
    assert step(nn.Dropout(1.0), ones(4, (6,))).sum() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["values", "paths"])
def test_types_stay(kind, dtype):
    make, shape = KINDS[kind]
    assert step(make(), ones(3, shape).to(dtype)).dtype == dtype


def test_gradients_pass_where_values_do():
    values = torch.randn(6, 8, requires_grad=True)
    kept = step(nn.Dropout(0.5), values)
    kept.sum().backward()
    assert torch.equal(values.grad, torch.where(kept == 0, 0.0, 2.0))


def test_all_of_a_network_is_replaced():
    """Wherever it stands, also where one module stands in two places; tensors and their names stay."""
    shared = nn.Dropout(0.3)
    network = nn.ModuleDict(
        {
            "block": nn.Sequential(nn.Linear(6, 6), shared, nn.Sequential(DropPath(0.2))),
            "head": nn.Sequential(nn.Dropout2d(0.1), nn.Linear(6, 2)),
            "again": shared,
        }
    )
    before = {name: value.data_ptr() for name, value in network.state_dict().items()}
    draws = Draws(World())
    draw_for_the_whole_batch(network, draws)
    found = [network["block"][1], network["block"][2][0], network["head"][0], network["again"]]
    assert [type(one) for one in found] == [
        WholeBatchDropout,
        WholeBatchDropPath,
        WholeBatchDropout,
        WholeBatchDropout,
    ]
    assert [(one.p, getattr(one, "channels", None)) for one in found] == [
        (0.3, False),
        (0.2, None),
        (0.1, True),
        (0.3, False),
    ]
    assert all(one.draws is draws for one in found)
    assert {name: value.data_ptr() for name, value in network.state_dict().items()} == before
