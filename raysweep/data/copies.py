"""The search for copies: images that occur more than once within and across train, val and test.

A copy in train makes a test image easy for the wrong reason, the more so the more layers are
trained: depth looks better than it is. Barz & Denzler 2020, "Do we train on test data? Purging
CIFAR of near-duplicates", arXiv:1902.00423, found such copies of 3 % of CIFAR-10's test images
and of 9 % of CIFAR-100's, by nearest neighbours among a network's features and people who looked.

Three kinds are told apart. `exact`: the same pixels. `mirror`: the same after a left-right flip.
`near`: the same picture stored again, or cropped or scaled a little, in either orientation; not one
whose brightness was changed. Candidates for the last are the nearest neighbours by small pictures;
a network's penultimate features found no more. What counts is whether it *stands out*: handwritten digits of a
class resemble each other as much as an image its JPEG copy, yet each has many such neighbours and a
copy has one. Of a film's frames only those that hardly differ are therefore found.

Found of planted copies: all exact and mirrored ones; of JPEG copies of quality 50 to 90, 90 % of
8×8 digits and of fake images, 91 % of 32×32 patches of photographs (every one but of flat patches)
and all of synthetic textures. Flagged as near of clean images: 0.2 % of digits, no fake image, no
texture, 4 % of the patches, which are neighbours in one photograph. CIFAR was not at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .dataset import Dataset
from .decoding import pixels_digest
from .findings import KINDS, SPLITS, Image, Kind, Pair, parts

SIDE = 16
"""Pixels of the small pictures that are compared; smaller images are compared as they are."""
NEIGHBOURS = 8
"""Candidates of an image; the difference from the last of them is what a copy has to stand out from."""
STANDS_OUT = 0.15
"""Most that a copy's squared difference may be of the last candidate's."""
ALIKE = 0.19
"""Most that it may be of the picture's own variance, a correlation of 0.9, unless it is less than noise."""
NOISE = 3.0
"""Root of the mean squared difference, of 255, that storing a picture again may make."""
CERTAIN = 0.004
"""As `ALIKE`, a correlation of 0.998: below this and noise anything is a copy, though it be one of many."""
LUMINANCE = torch.tensor([0.299, 0.587, 0.114])
"""Of red, green and blue, as JPEG weighs them."""
DIMENSIONS = 64
"""Candidates are searched in so many principal components."""
EVERY_PAIR = 100_000
"""Up to so many images all are compared; of more, val and test with all, and train not with itself."""


@dataclass(frozen=True)
class _Links:
    """Pairs of groups of equal images."""

    kind: Kind
    ends: np.ndarray  # (links, 2) of groups
    similarity: np.ndarray  # (links,)


def find_pairs(dataset: Dataset) -> tuple[Pair, ...]:
    """Pairs of images of which one is a copy of the other, within and across the splits; see `Findings.pairs`.

    Takes 35 s for 60,000 images of 32×32 pixels on one busy core, 0.1 s for 1,797 digits. The images
    are read twice, in batches.
    """
    digests, mirrored = _digests(dataset)
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)  # images of one group are equal
    exact = np.flatnonzero(np.bincount(group) > 1)
    least = 0 if len(group) <= EVERY_PAIR else len(dataset.train)
    queries = torch.from_numpy(np.flatnonzero(first >= least))
    links = [
        _Links("exact", np.stack([exact, exact], 1), np.ones(len(exact))),
        _mirror_links(digests[first], mirrored[first]),
        _near_links(_pictures(dataset)[torch.from_numpy(first)], queries),
    ]
    return tuple(_pairs(dataset, group, links))


def _batches(dataset: Dataset, pixels: int = 2**22) -> Iterator[np.ndarray]:
    """All images, train first, then val and test: (batch, 3, height, width) uint8."""
    for _, part in parts(dataset):
        size = max(1, pixels // int(np.prod(part.pool.shape[-2:])))
        for start in range(0, len(part), size):
            yield part.images(slice(start, start + size))


def _digests(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all images and of their mirrors: (n,) of 16 bytes each."""
    digests: list[bytes] = []
    mirrored: list[bytes] = []
    for batch in _batches(dataset):
        digests.extend(map(pixels_digest, batch))
        mirrored.extend(map(pixels_digest, batch[..., ::-1]))
    return np.array(digests, dtype="V16"), np.array(mirrored, dtype="V16")


def _mirror_links(digests: np.ndarray, mirrored: np.ndarray) -> _Links:
    """Groups that are another's mirror. `digests` ascend, a group each."""
    group_of = {digest: group for group, digest in enumerate(digests.tolist())}
    other = np.array([group_of.get(digest, -1) for digest in mirrored.tolist()])
    one = np.flatnonzero(other > np.arange(len(other)))  # each once, and no image that is its own mirror
    return _Links("mirror", np.stack([one, other[one]], 1), np.ones(len(one)))


@dataclass(frozen=True)
class _Pictures:
    """What is compared of images: levels from 0 to 255."""

    grey: Tensor
    """(n, height, width), at most SIDE each."""
    tint: Tensor
    """(n, 3, 2, 2): what the colours of each quarter have over their grey. JPEG coarsens colour, hence no finer."""

    def __getitem__(self, index: Tensor) -> _Pictures:
        return _Pictures(self.grey[index], self.tint[index])

    def mirrored(self) -> _Pictures:
        return _Pictures(self.grey.flip(-1), self.tint.flip(-1))

    def vectors(self) -> Tensor:
        """(n, d), whose squared distance is the mean squared difference of grey plus that of tint."""
        pixels = self.grey[0].numel()
        return torch.cat([self.grey.flatten(1) / pixels**0.5, self.tint.flatten(1) / 12**0.5], 1)

    def variance(self) -> Tensor:
        """(n,)."""
        return self.grey.flatten(1).var(1, correction=0) + self.tint.flatten(2).var(2, correction=0).mean(1)


def _pictures(dataset: Dataset) -> _Pictures:
    height, width = dataset.train.pool.shape[-2:]
    size = min(SIDE, height), min(SIDE, width)
    parts = []
    for batch in _batches(dataset):
        small = F.adaptive_avg_pool2d(torch.from_numpy(batch).float(), size)
        grey = torch.einsum("ncyx,c->nyx", small, LUMINANCE)
        parts.append(_Pictures(grey, F.adaptive_avg_pool2d(small - grey[:, None], 2)))
    return _Pictures(torch.cat([part.grey for part in parts]), torch.cat([part.tint for part in parts]))


@torch.inference_mode()
def _near_links(pictures: _Pictures, queries: Tensor) -> _Links:
    """Pairs of which one stands out among the neighbours of the other.

    Args:
        pictures: n of them.
        queries: whose neighbours to look at.
    """
    candidates = _neighbours(_reduced([pictures.vectors(), pictures.mirrored().vectors()]), queries)
    if candidates.shape[1] == 0:
        return _Links("near", np.empty((0, 2), np.int64), np.empty(0))
    residual = torch.stack([_residual(pictures, queries, column) for column in candidates.T], 1)
    variance = pictures.variance()[queries, None]
    stands_out = residual <= STANDS_OUT * residual.amax(1, keepdim=True)
    alike = residual <= (ALIKE * variance).clamp(min=NOISE**2)
    certain = residual <= (CERTAIN * variance).clamp(max=NOISE**2)
    query, column = (stands_out & alike | certain).nonzero(as_tuple=True)
    ends = torch.stack([queries[query], candidates[query, column]], 1)
    return _Links("near", ends.numpy(), (1 - residual[query, column].sqrt() / 255).numpy())


def _reduced(views: Sequence[Tensor]) -> list[Tensor]:
    """Vectors in the principal components of at most 20,000 rows of the first view."""
    first = views[0][:: -(-len(views[0]) // 20_000)]
    if first.shape[1] <= DIMENSIONS:
        return list(views)
    mean = first.mean(0)
    basis = torch.linalg.eigh((first - mean).T @ (first - mean)).eigenvectors[:, -DIMENSIONS:]  # ascending
    return [(view - mean) @ basis for view in views]


def _neighbours(views: Sequence[Tensor], queries: Tensor) -> Tensor:
    """The rows nearest to each query in any of the views, without itself: (queries, k)."""
    total = len(views[0])
    k = min(NEIGHBOURS, total - 1)
    halves = [(view**2).sum(1) / 2 for view in views]
    nearest = [torch.empty((0, k), dtype=torch.int64)]
    for rows in queries.split(max(1, 2**24 // total)):  # 64 MB of scores
        wanted = views[0][rows]
        scores = torch.addmm(-halves[0], wanted, views[0].T)  # greatest where the distance is least
        for view, half in zip(views[1:], halves[1:], strict=True):
            torch.maximum(scores, torch.addmm(-half, wanted, view.T), out=scores)
        scores[torch.arange(len(rows)), rows] = -torch.inf
        nearest.append(scores.topk(k).indices)
    return torch.cat(nearest)


def _residual(pictures: _Pictures, ones: Tensor, others: Tensor) -> Tensor:
    """Mean squared difference that is left when the others, or their mirrors, are moved to fit: (pairs,)."""
    parts = []
    for one, other in zip(ones.split(4096), others.split(4096), strict=True):
        target, view = pictures[one], pictures[other]
        parts.append(torch.minimum(_misfit(target, view), _misfit(target, view.mirrored())))
    return torch.cat(parts)


def _misfit(target: _Pictures, view: _Pictures) -> Tensor:
    """What a small shift and change of scale of the view cannot explain of the target: (m,).

    The tangent distance of Simard, LeCun & Denker 1993, "Efficient pattern recognition using a new
    transformation distance": least squares on the view's derivatives by shift and by scale.
    """
    difference = (target.grey - view.grey).flatten(1)[:, :, None]  # (m, pixels, 1)
    height, width = view.grey.shape[1:]
    left = (difference**2).sum((1, 2))
    if min(height, width) > 1:
        down, right = torch.gradient(view.grey, dim=(1, 2))
        y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
        moves = torch.stack([part.flatten(1) for part in (down, right, y * down + x * right)], 1)
        inner = moves @ difference  # (m, 3, 1)
        gram = moves @ moves.mT + 1e-3 * height * width * torch.eye(3)  # a flat picture's derivatives are zero
        left = left - (torch.linalg.solve(gram, inner) * inner).sum((1, 2))
    tint = ((target.tint - view.tint) ** 2).mean((1, 2, 3))
    return left.clamp(min=0) / (height * width) + tint


def _pairs(dataset: Dataset, group: np.ndarray, links: Iterable[_Links]) -> list[Pair]:
    """Pairs of images, the worst first: each image of a group with the linked group's first in every split."""
    images = _images(dataset)
    members: list[list[int]] = [[] for _ in range(group.max(initial=-1) + 1)]
    firsts: list[dict[str, int]] = [{} for _ in members]
    for image, number in enumerate(group.tolist()):
        members[number].append(image)
        firsts[number].setdefault(images[image].split, image)
    found: dict[tuple[int, int], Pair] = {}
    for link in links:
        for (u, v), similarity in zip(link.ends.tolist(), link.similarity.tolist(), strict=True):
            ends = [(a, b) for one, two in ((u, v), (v, u)) for a in members[one] for b in firsts[two].values()]
            for a, b in {(min(a, b), max(a, b)) for a, b in ends if a != b}:
                found.setdefault((a, b), Pair(link.kind, images[a], images[b], similarity))
    return sorted(found.values(), key=_gravity)


def _images(dataset: Dataset) -> list[Image]:
    return [
        Image(split, position, name, dataset.class_names[label])
        for split, part in parts(dataset)
        for position, (name, label) in enumerate(zip(part.names, part.labels.tolist(), strict=True))
    ]


def _gravity(pair: Pair) -> tuple[Any, ...]:
    """Sorts the worst first."""
    a, b = SPLITS.index(pair.a.split), SPLITS.index(pair.b.split)
    return a == b, -b, a, pair.same_label, KINDS.index(pair.kind), -pair.similarity, pair.a.position, pair.b.position
