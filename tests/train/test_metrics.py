import math

import pytest
import torch

from raysweep.recipe import Train
from raysweep.train.ddp import World
from raysweep.train.metrics import predict
from tests.train.small_images import cnn, labelled, linear


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_evaluation_counts_each_image_once(size):
    split = labelled(7)
    found = predict(linear(0.0, (0.0, 1.0)), split, Train(eval_batch_size=size), World())
    assert torch.cat([positions for positions, _, _ in split.source.asked]).tolist() == list(range(7))
    assert found.accuracy == pytest.approx(3 / 7)
    assert found.loss == pytest.approx(math.log(1 + math.exp(-1)) + 4 / 7)


@pytest.mark.parametrize("positions", [None, torch.tensor([5, 1, 1, 6])])
def test_predictions_are_of_the_images_in_their_order(positions):
    """In eval mode, whatever mode the network was in."""
    split, network = labelled(7), cnn().train()
    found = predict(network, split, Train(eval_batch_size=3), World(), positions)
    wanted = torch.arange(7) if positions is None else positions
    assert not network.training
    with torch.no_grad():
        probabilities = network(*split.source.batch(wanted, None, training=False)).softmax(1).double()
    assert torch.equal(found.labels, split.labels[wanted])
    assert torch.equal(found.predicted, probabilities.argmax(1))
    torch.testing.assert_close(found.confidence, probabilities.max(1).values, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.losses, -probabilities[range(len(wanted)), found.labels].log(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("settings", "size"), [({}, 128), ({"batch_size": 200}, 200), ({"eval_batch_size": 50}, 50)])
def test_batches_of_evaluation(settings, size):
    """Without a size of their own they are those of training, at least 128."""
    split = labelled(300)
    predict(linear(), split, Train(**settings), World())
    assert [len(positions) for positions, _, _ in split.source.asked] == [size] * (300 // size) + [300 % size] * (
        300 % size > 0
    )
