"""The moving average of the weights: by hand, and measured and handed on in the weights' place."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from raysweep.recipe import Features
from raysweep.train.ddp import World
from raysweep.train.ema import Averages
from raysweep.train.metrics import predict
from raysweep.train.phases import Fit, Sharing
from tests.features.small_trials import trial_of
from tests.train.small_images import cnn, labelled, phase_of, training_of

NEVER = Sharing(Features(cache="never"))


def weighing(value):
    network = nn.Linear(2, 1)
    nn.init.constant_(network.weight, value)
    return network


def test_by_hand():
    """The decays of steps 1 to 4 are 0, 1 - 2 ** -2/3 = 0.370, 1 - 3 ** -2/3 = 0.519, then what was asked for."""
    averages, expected = Averages(weighing(9.0), 0.52), None
    for step, (value, decay) in enumerate([(1.0, 0.0), (2.0, 0.370039), (4.0, 0.519250), (8.0, 0.52)], start=1):
        averages.update(weighing(value), step)
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert averages.network.weight[0, 0].item() == pytest.approx(expected, abs=1e-5)


def test_of_a_constant_decay_it_is_torchs_own():
    """The decay is below that of the first steps, so that it applies from the second step on, as in PyTorch's."""
    networks = [cnn(seed) for seed in range(4)]
    averages, torchs = Averages(networks[0], 0.3), AveragedModel(cnn(9), multi_avg_fn=get_ema_multi_avg_fn(0.3))
    for step, network in enumerate(networks, start=1):
        averages.update(network, step)
        torchs.update_parameters(network)
    for one, other in zip(averages.network.parameters(), torchs.module.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_running_statistics_are_averaged_and_counts_taken_as_they_are():
    first, second = cnn(0), cnn(1)
    norm, other = (next(x for x in one.modules() if isinstance(x, nn.BatchNorm2d)) for one in (first, second))
    norm.running_mean.fill_(1.0), other.running_mean.fill_(2.0)
    other.num_batches_tracked.fill_(7)
    averages = Averages(first, 0.25)
    averages.update(first, 1)
    averages.update(second, 2)
    found = next(x for x in averages.network.modules() if isinstance(x, nn.BatchNorm2d))
    assert found.running_mean.unique().tolist() == [1.75]
    assert int(found.num_batches_tracked) == 7


def test_averages_are_measured_and_stay_at_the_end():
    network, validation = cnn(), labelled(6)
    plain = [row.val_loss for row in training_of(cnn(), phase_of(), labelled(12), validation).epochs()]
    training = training_of(network, phase_of(ema=0.9), labelled(12), validation)
    rows = list(training.epochs())
    assert [row.train_loss for row in rows] == pytest.approx(
        [row.train_loss for row in training_of(cnn(), phase_of(), labelled(12), validation).epochs()]
    )
    assert all(one.val_loss != other for one, other in zip(rows, plain, strict=True))
    for name, value in training.averages.network.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)
    found = predict(network, validation, training.settings, World())
    assert found.loss == rows[-1].val_loss


def test_a_fit_leaves_its_averages_as_the_network():
    """What is exported answers as what was measured."""
    fit = Fit(trial_of("small_cnn", "all", ema=0.9), NEVER, World())
    rows = list(fit.epochs())
    tensors = fit.network.state()
    averages = fit._stage.training.averages.state()
    assert all(torch.equal(tensors[name], value) for name, value in averages.items())
    assert rows[-1].val_loss == fit.predictions.loss
