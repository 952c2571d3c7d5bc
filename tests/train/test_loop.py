import itertools
import math

import pytest
import torch
from torch import nn

from raysweep.data.sources import Images
from raysweep.train.loop import DivergedError
from tests.train.small_images import cnn, epochs_of, labelled, linear, phase_of, training_of, with_dropout, without_time

# ---- what is measured ----


def test_loss_decreases():
    found = epochs_of(cnn(), phase_of(epochs=8), counts=(40, 10))
    assert [one.epoch for one in found] == list(range(1, 9))
    assert found[-1].train_loss < 0.5 * found[0].train_loss
    assert found[-1].train_accuracy > 0.9


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_same_seed_same_measures(precision):
    def run(seed):
        network, draws = with_dropout(cnn())
        return without_time(epochs_of(network, phase_of(seed=seed, flip=True, precision=precision), draws=draws))

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize("dropout", [None, nn.Dropout(0.5), nn.AlphaDropout(0.5)])
def test_measures_do_not_depend_on_what_happens_between_epochs(dropout):
    """Nor where dropout is the network's own, as in a compiled one: it too is drawn from the trial's seed."""

    def run(numbers, seed=0):
        network, draws = (nn.Sequential(linear(0.01), dropout), None) if dropout else with_dropout(linear(0.01))
        phase = phase_of(lr=0.1, epochs=3, seed=seed)
        found = []
        for measures in training_of(network, phase, labelled(12), labelled(6), draws=draws).epochs():
            torch.rand(numbers)
            found.append(measures)
        return without_time(found)

    torch.manual_seed(1)
    first = run(1)
    assert first == run(2)
    assert first != run(1, seed=1)


@pytest.mark.parametrize(("asked", "mode"), [(True, None), ("reduce-overhead", "reduce-overhead")])
def test_a_suffix_is_compiled_as_asked(monkeypatch, asked, mode):
    """With CUDA graphs each pass says that it is a new step. The network that is measured is the plain one."""
    modes, passes = [], []
    monkeypatch.setattr(torch, "compile", lambda network, mode: modes.append(mode) or network)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: passes.append(1))
    expected = without_time(epochs_of(linear(0.01), phase_of()))
    assert without_time(epochs_of(linear(0.01), phase_of(compile=asked))) == expected
    assert modes == [mode]
    assert len(passes) == (6 if mode else 0)


def test_without_validation():
    """As in the final fit."""
    found = list(training_of(linear(), phase_of(patience=1), labelled(6), None).epochs())
    stated = [set(one.model_dump(exclude_defaults=True)) for one in found]
    assert stated == [{"epoch", "train_loss", "lr_epoch", "seconds"}] * 2


def test_epochs_are_counted_on_from_the_first():
    assert [one.epoch for one in epochs_of(linear(), phase_of(), first_epoch=4)] == [4, 5]


def test_train_accuracy_is_measured_like_validation_accuracy():
    """In eval mode, unflipped, on as many images, the same in every epoch and for every seed."""
    asked = []
    for seed in (0, 1):
        training, validation = labelled(20), labelled(6)
        network, draws = with_dropout(cnn())
        phase = phase_of(seed=seed, flip=True, batch_size=8)
        for measures in training_of(network, phase, training, validation, draws=draws).epochs():
            positions, flips, _ = training.source.asked[-1]
            with torch.no_grad():
                scores = network.eval()(*training.source.batch(positions, None, training=False))
            assert measures.train_accuracy == (scores.argmax(1) == training.labels[positions]).double().mean()
            assert measures.val_images == 6
            assert flips is None
            asked.append(positions.tolist())
    assert all(positions == asked[0] for positions in asked)
    assert len(set(asked[0])) == 6


def test_train_accuracy_on_all_images():
    training = labelled(20)
    list(training_of(linear(), phase_of(train_accuracy_on="all"), training, labelled(6)).epochs())
    positions, _, _ = training.source.asked[-1]
    assert positions.tolist() == list(range(20))


def test_losses_are_means_over_images():
    """Logits (2, 0) for every image: loss ln(1 + e⁻²) for class 0 and 2 more for class 1. Batches of 4 and 3."""
    low = math.log(1 + math.exp(-2))
    phase = phase_of(lr=0.0, epochs=1, eval_batch_size=2)
    (found,) = epochs_of(linear(0.0, (2.0, 0.0)), phase, counts=(7, 5))
    assert found.train_loss == pytest.approx(low + 2 * 3 / 7)
    assert found.val_loss == pytest.approx(low + 2 * 2 / 5)
    assert found.val_accuracy == pytest.approx(3 / 5)


def test_label_smoothing_is_for_training_alone():
    """A share of 0.2 over two classes takes 0.1 of class 0's weight to class 1, whose loss is 2 higher, and back."""
    low = math.log(1 + math.exp(-2))
    phase = phase_of(lr=0.0, epochs=1, label_smoothing=0.2)
    (found,) = epochs_of(linear(0.0, (2.0, 0.0)), phase, counts=(4, 4))
    assert found.train_loss == pytest.approx(0.5 * (low + 0.1 * 2) + 0.5 * (low + 0.9 * 2))
    assert found.val_loss == pytest.approx(low + 1)


# ---- batches ----


def test_batch_norm_survives_a_remainder_of_one():
    """At 8 × 8 pixels the last feature map is one pixel, so that a batch of one image has one value a channel."""
    assert epochs_of(cnn(), phase_of(), counts=(9, 4))


@pytest.mark.parametrize("flip", [True, False])
def test_training_asks_for_flips(flip):
    training = labelled(12)
    list(training_of(linear(), phase_of(epochs=1, flip=flip), training, labelled(4)).epochs())
    while_training = [flips is not None for _, flips, training in training.source.asked if training]
    assert while_training == [flip] * 3


# ---- when it ends ----


@pytest.mark.parametrize(("patience", "epochs"), [(None, 6), (1, 2), (2, 3)])
def test_patience(patience, epochs):
    """At a learning rate of zero no epoch is better than the first."""
    assert len(epochs_of(linear(), phase_of(lr=0.0, epochs=6, patience=patience))) == epochs


def test_patience_is_for_epochs_in_a_row():
    """At 1e-4 this network still improves, so patience never runs out."""
    assert len(epochs_of(linear(0.0), phase_of(lr=1e-4, epochs=6, patience=1, optimizer="sgd"))) == 6


@pytest.mark.parametrize("halt", [1, 3, 4, 9])
def test_a_halted_phase_is_the_beginning_of_the_whole(halt):
    """Its schedule is as long as the phase has epochs, however early it halts."""

    def run(**more):
        return without_time(epochs_of(cnn(), phase_of(epochs=4, schedule="cosine", flip=True), **more))

    whole, halted = run(), run(halt=halt)
    assert len(halted) == min(halt, 4)
    assert [one["lr_epoch"] for one in halted] == [one["lr_epoch"] for one in whole[:halt]]
    assert len({one["lr_epoch"] for one in whole}) == 4
    assert halted == whole[:halt]


def test_divergence():
    with pytest.raises(DivergedError, match=r"loss is (inf|nan) in epoch \d: lower lr=1e\+38 or set train\.clip_norm"):
        epochs_of(linear(), phase_of(lr=1e38, epochs=5, optimizer="sgd"))


class Spoilt(Images):
    """Images that are no numbers from the n-th time on that they are asked for."""

    sound = 0

    def frontier(self, fetched, training):
        self.sound -= 1
        tensors = super().frontier(fetched, training)
        return tensors if self.sound >= 0 else tuple(torch.full_like(one, math.nan) for one in tensors)


@pytest.mark.parametrize(
    ("steps", "sound", "epoch"),
    [
        (None, 0, 1),
        (None, 1, 2),
        (1, 0, 1),
        (2, 2, 2),  # of three steps an epoch: after the second, after the epoch, after the fourth
    ],
)
def test_divergence_that_shows_in_validation_alone(steps, sound, epoch):
    validation = labelled(4, kind=Spoilt)
    validation.source.sound = sound
    run = training_of(linear(), phase_of(epochs=3, validate_every_steps=steps), labelled(12), validation).epochs()
    found = list(itertools.islice(run, epoch - 1))
    assert all(math.isfinite(one.train_loss) for one in found)
    expected = rf"the validation loss is nan in epoch {epoch}: lower lr=0\.01 or set train\.clip_norm"
    with pytest.raises(DivergedError, match=expected):
        next(run)
