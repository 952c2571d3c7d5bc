import math

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from raysweep.recipe import Train
from raysweep.train.ddp import World
from raysweep.train.metrics import Predictions, Scores, predict
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


# ---- scores ----


def predictions_of(labels, predicted, losses=None, in_top5=None):
    count = len(labels)
    return Predictions(
        torch.as_tensor(labels),
        torch.as_tensor(predicted),
        torch.full((count,), 0.5, dtype=torch.float64),
        torch.ones(count, dtype=torch.float64) if losses is None else torch.as_tensor(losses, dtype=torch.float64),
        torch.zeros(count, dtype=torch.bool) if in_top5 is None else torch.as_tensor(in_top5),
    )


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (5, 1), (10, 2), (30, 3)])
def test_scores_are_those_of_scikit_learn(classes, seed):
    """Of 60 images in classes of very different sizes, two of three predicted right."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, 60 - classes) ** 2 // classes])
    predicted = np.where(random.random(60) < 2 / 3, labels, random.integers(0, classes, 60))
    losses = random.exponential(size=60)
    found = predictions_of(labels, predicted, losses)
    scores = found.scores(classes)
    assert scores.loss == found.loss == pytest.approx(losses.mean())
    assert scores.accuracy == found.accuracy == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert scores.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert scores.macro_f1 == pytest.approx(metrics.f1_score(labels, predicted, average="macro", zero_division=0.0))
    assert len({round(value, 6) for value in (scores.accuracy, scores.balanced_accuracy, scores.macro_f1)}) == 3
    torch.testing.assert_close(found.true_probability, torch.from_numpy(np.exp(-losses)))


def test_scores_worked_by_hand():
    """Class 0: 2 of 3 right, once said wrongly; class 1: 1 of 2, once said wrongly; class 2 does not occur.

    F1: 2·2 / (3 + 3), 2·1 / (2 + 2), and 0 of what is neither there nor said.
    """
    scores = predictions_of([0, 0, 0, 1, 1], [0, 0, 1, 1, 0], [0.5, 0.5, 2, 0, 2]).scores(3)
    assert scores == Scores(
        loss=pytest.approx(1.0),
        accuracy=pytest.approx(3 / 5),
        balanced_accuracy=pytest.approx((2 / 3 + 1 / 2) / 2),  # over the classes that occur
        macro_f1=pytest.approx((2 / 3 + 1 / 2 + 0) / 3),  # over all
        top5=None,
    )


@pytest.mark.filterwarnings("error")
def test_a_class_that_the_data_has_not():
    """A kept classifier of 1000 outputs may say one: the image is wrong, and no class of the data was said."""
    scores = predictions_of([0, 0, 1, 1], [0, 999, 1, 1], in_top5=[True] * 4).scores(2)
    assert (scores.accuracy, scores.balanced_accuracy) == (0.75, 0.75)
    assert scores.macro_f1 == pytest.approx((2 / 3 + 1) / 2)
    assert scores.top5 is None
    nothing = predictions_of([0, 1], [7, 8]).scores(2)
    assert (nothing.accuracy, nothing.balanced_accuracy, nothing.macro_f1) == (0, 0, 0)


@pytest.mark.parametrize(("classes", "top5"), [(2, None), (9, None), (10, 0.75), (100, 0.75)])
def test_top5_is_for_ten_classes_and_more(classes, top5):
    found = predictions_of([0, 1, 1, 0], [1, 1, 0, 1], in_top5=[True, True, False, True])
    assert found.scores(classes).top5 == top5


class Given(nn.Module):
    """Answers with scores that are given, in the order of the images."""

    def __init__(self, scores):
        super().__init__()
        self.scores, self.told = torch.tensor(scores), 0

    def forward(self, images):
        first, self.told = self.told, self.told + len(images)
        return self.scores[first : self.told]


def test_top5_worked_by_hand():
    """Labels 0, 1, 0, 1. Class 0 is fifth of all, class 1 sixth, class 0 first, class 1 last."""
    fifth = [5.0, 0, 9, 8, 7, 6, 1, 2, 3, 4]
    sixth = [1.0, 4, 9, 8, 7, 6, 5, 2, 3, 0]
    first = [9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    last = [9.0, 0, 8, 7, 6, 5, 4, 3, 2, 1]
    found = predict(Given([fifth, sixth, first, last]), labelled(4), Train(eval_batch_size=3), World())
    assert found.labels.tolist() == [0, 1, 0, 1]
    assert found.predicted.tolist() == [2, 2, 0, 0]
    assert found.in_top5.tolist() == [True, False, True, False]
    assert found.scores(10).top5 == 0.5


def test_a_kept_classifier_may_say_what_the_data_has_not():
    """Two classes of data, ten outputs: class 7 is likeliest for every other image, and takes its share of the loss."""
    sure, elsewhere = [4.0, 0, *[0] * 8], [0.0, 4, *[0] * 5, 8, 0, 0]
    found = predict(Given([sure, elsewhere] * 2), labelled(4), Train(), World())
    assert found.predicted.tolist() == [0, 7, 0, 7]
    low, high = 4 - math.log(math.exp(4) + 9), 4 - math.log(math.exp(8) + math.exp(4) + 8)
    expected = torch.tensor([-low, -high] * 2).double()
    torch.testing.assert_close(found.losses, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.true_probability, expected.neg().exp(), rtol=1e-4, atol=0)
    scores = found.scores(2)
    assert (scores.accuracy, scores.balanced_accuracy, scores.top5) == (0.5, 0.5, None)
    assert scores.macro_f1 == 0.5  # 1 of class 0, 0 of class 1
    assert scores.loss == pytest.approx(-(low + high) / 2)


def test_types_of_predictions():
    found = predict(cnn(), labelled(7), Train(eval_batch_size=3), World())
    types = [getattr(found, name).dtype for name in ("labels", "predicted", "confidence", "losses", "in_top5")]
    assert types == [torch.int64, torch.int64, torch.float64, torch.float64, torch.bool]
    torch.testing.assert_close(found.true_probability, found.losses.neg().exp())
    assert isinstance(found.loss, float)
    assert found.loss == pytest.approx(float(found.losses.mean()))
