"""Two ranks compute what one does."""

import itertools
from dataclasses import asdict

import pytest
import torch
import torch.multiprocessing

from raysweep.recipe import Train
from raysweep.train.ddp import World
from raysweep.train.metrics import predict
from tests.train.small_images import cnn, epochs_of, labelled, phase_of, without_time

CASES = {
    "batch norm trains": {"clip_norm": 1.0, "label_smoothing": 0.1},
    "batch norm of frozen layers": {},
    "bfloat16": {"autocast": "bfloat16"},
}
COUNTS = (11, 5)
"""Batches of 5 and 6; shares of 3 and 2 images. Validation: 3 and 2."""


def run_case(name, world):
    network = cnn()
    if name == "batch norm of frozen layers":
        network.stage1.requires_grad_(False)
    phase = phase_of(flip=True, batch_norm="training", epochs=3, batch_size=5, **CASES[name])
    return without_time(epochs_of(network, phase, COUNTS, world=world)), network.state_dict()


def predictions(world):
    return asdict(predict(cnn(), labelled(7), Train(eval_batch_size=2), world))


def rank_main(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {"predictions": predictions(World(rank, 2))}
    for name in CASES:
        try:
            results[name] = run_case(name, World(rank, 2))
        except RuntimeError as error:  # the same on both ranks
            results[name] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What each of two processes makes of every case; they are started once."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(rank_main, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("batch norm trains", 1e-4),
        ("batch norm of frozen layers", 1e-4),
        ("bfloat16", 0.05),
    ],
)
def test_two_ranks_are_one(two_ranks, name, tolerance):
    expected, tensors = run_case(name, World())
    for results in two_ranks:
        assert not isinstance(results[name], str), results[name]
        found, state = results[name]
        for measures, other in zip(found, expected, strict=True):
            assert measures == pytest.approx(other, abs=tolerance)
        for key, value in tensors.items():
            torch.testing.assert_close(state[key].float(), value.float(), rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.slow
def test_two_ranks_predict_all_images_in_their_order(two_ranks):
    expected = predictions(World())
    for results in two_ranks:
        torch.testing.assert_close(results["predictions"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_are_a_partition(size):
    shares = [World(rank, size).share(torch.arange(7)).tolist() for rank in range(size)]
    assert sorted(itertools.chain(*shares)) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
