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
and all of synthetic textures. Flagged as near of clean images: 0.3 % of digits, no fake image, no
texture, 4 % of the patches, which are neighbours in one photograph. CIFAR was not at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .dataset import Dataset, Split
from .decoding import pixels_digest
from .findings import KINDS, SPLITS, Image, Kind, Pair, parts
from .stages import Advance, unseen

FORMAT = 1
"""Of the search; a change looks for copies anew."""
PASSES = 3
"""How often the search goes through all images."""

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
ALL_COMPARED = 8_192
"""Up to so many pictures and mirrors each is compared with all; of more, with those in cells near to it."""
PROBES = 16
"""Cells that are searched for each picture."""
AT_ONCE = 1024
"""Pictures that are compared with their candidates together."""


@dataclass(frozen=True)
class _Links:
    """Pairs of groups of equal images."""

    kind: Kind
    ends: np.ndarray  # (links, 2) of groups
    similarity: np.ndarray  # (links,)


def find_pairs(dataset: Dataset, advance: Advance = unseen) -> tuple[Pair, ...]:
    """Pairs of images of which one is a copy of the other, within and across the splits; see `Findings.pairs`.

    Takes 11 CPU-seconds for 60,000 images of 32×32 pixels, 0.3 for 1,797 digits. The images are read twice, in
    batches; what is kept of each takes 2 kB of memory.

    Args:
        dataset: whose images.
        advance: is told of every image `PASSES` times.
    """
    digests, mirrored = _digests(dataset, advance)
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)  # images of one group are equal
    exact = np.flatnonzero(np.bincount(group) > 1)
    pictures = _pictures(dataset, advance)
    links = [
        _Links("exact", np.stack([exact, exact], 1), np.ones(len(exact))),
        _mirror_links(digests[first], mirrored[first]),
        _near_links(pictures if len(first) == len(group) else pictures[torch.from_numpy(first)], advance),
    ]
    return tuple(_pairs(dataset, group, links))


def _batches(dataset: Dataset, pixels: int = 2**22) -> Iterator[tuple[Split, slice]]:
    """Splits and positions in them: all images in batches, train first, then val and test."""
    for _, part in parts(dataset):
        size = max(1, pixels // int(np.prod(part.pool.shape[-2:])))
        for start in range(0, len(part), size):
            yield part, slice(start, min(start + size, len(part)))


def _digests(dataset: Dataset, advance: Advance) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all images and of their mirrors: (n,) of 16 bytes each."""

    def of(place: tuple[Split, slice]) -> list[tuple[bytes, bytes]]:
        batch = place[0].images(place[1])
        return [(pixels_digest(image), pixels_digest(image[..., ::-1])) for image in batch]

    found: list[tuple[bytes, bytes]] = []
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for some in threads.map(of, _batches(dataset, 2**20)):
            found += some
            advance(len(some))
    digests, mirrored = zip(*found, strict=True)
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


def _pictures(dataset: Dataset, advance: Advance) -> _Pictures:
    height, width = dataset.train.pool.shape[-2:]
    size = min(SIDE, height), min(SIDE, width)
    total = sum(len(part) for _, part in parts(dataset))
    pictures, start = _Pictures(torch.empty(total, *size), torch.empty(total, 3, 2, 2)), 0
    for part, places in _batches(dataset):
        small = F.adaptive_avg_pool2d(torch.from_numpy(part.images(places)).float(), size)
        here, start = slice(start, start + len(small)), start + len(small)
        pictures.grey[here] = torch.einsum("ncyx,c->nyx", small, LUMINANCE)
        pictures.tint[here] = F.adaptive_avg_pool2d(small - pictures.grey[here, None], 2)
        advance(len(small))
    return pictures


@torch.inference_mode()
def _near_links(pictures: _Pictures, advance: Advance) -> _Links:
    """Pairs of pictures of which one stands out among the neighbours of the other."""
    total = len(pictures.grey)
    if total < 2:
        return _Links("near", np.empty((0, 2), np.int64), np.empty(0))
    candidates = _neighbours(_reduced(pictures))
    residual = torch.empty(candidates.shape)
    for some in torch.arange(total).split(AT_ONCE):
        residual[some] = _residual(pictures, some, candidates[some])
        advance(len(some))
    variance = pictures.variance()[:, None]
    stands_out = residual <= STANDS_OUT * residual.amax(1, keepdim=True)
    alike = residual <= (ALIKE * variance).clamp(min=NOISE**2)
    certain = residual <= (CERTAIN * variance).clamp(max=NOISE**2)
    one, column = (stands_out & alike | certain).nonzero(as_tuple=True)
    ends = torch.stack([one, candidates[one, column]], 1)
    return _Links("near", ends.numpy(), (1 - residual[one, column].sqrt() / 255).numpy())


def _reduced(pictures: _Pictures) -> Tensor:
    """(2 n, d): vectors of the pictures, then of their mirrors, in the principal components of at most 20,000."""
    total = len(pictures.grey)
    some = pictures[torch.arange(0, total, -(-total // 20_000))].vectors()
    mean, basis = torch.zeros(some.shape[1]), torch.eye(some.shape[1])
    if some.shape[1] > DIMENSIONS:
        mean = some.mean(0)
        basis = torch.linalg.eigh((some - mean).T @ (some - mean)).eigenvectors[:, -DIMENSIONS:]  # ascending
    vectors = torch.empty(2 * total, basis.shape[1])
    for rows in torch.arange(total).split(8192):
        part = pictures[rows]
        vectors[rows] = (part.vectors() - mean) @ basis
        vectors[rows + total] = (part.mirrored().vectors() - mean) @ basis
    return vectors


def _neighbours(vectors: Tensor) -> Tensor:
    """The pictures nearest to each, as they are or mirrored, without itself: (n, k).

    Where the index finds fewer, any other picture stands in.
    """
    total = len(vectors) // 2
    k = min(NEIGHBOURS, total - 1)
    _, found = _index(vectors.numpy()).search(vectors[:total].numpy(), 2 * (k + 1))  # each may be found twice
    others, own = torch.from_numpy(found), torch.arange(total)[:, None]
    others = torch.where(others < 0, (own + 1) % total, others % total)
    seen = others == own
    for column in range(1, others.shape[1]):
        seen[:, column] |= (others[:, :column] == others[:, column, None]).any(1)
    new_first = seen.to(torch.uint8).argsort(dim=1, stable=True)[:, :k]
    return others.gather(1, new_first)


def _index(vectors: np.ndarray) -> Any:
    """What finds nearest vectors: of many, in the `PROBES` cells around a query instead of everywhere."""
    import faiss

    width = vectors.shape[1]
    whole = faiss.IndexFlatL2(width)
    if len(vectors) <= ALL_COMPARED:
        whole.add(vectors)
        return whole
    cells = round(2 * len(vectors) ** 0.5)
    index = faiss.IndexIVFFlat(whole, width, cells)
    index.nprobe = PROBES
    index.train(vectors[:: max(1, len(vectors) // (40 * cells))])
    index.add(vectors)
    return index


def _residual(pictures: _Pictures, chosen: Tensor, candidates: Tensor) -> Tensor:
    """Mean squared difference that is left when pictures are moved to fit their candidates, or these mirrored.

    The tangent distance of Simard, LeCun & Denker 1993, "Efficient pattern recognition using a new
    transformation distance": least squares on a picture's derivatives by shift and by scale.

    Args:
        pictures: all of them.
        chosen: (m,).
        candidates: (m, k) for each.

    Returns:
        (m, k)
    """
    target, others = pictures[chosen], pictures[candidates]
    moves = _moves(target.grey)
    return torch.minimum(_misfit(target, others, *moves), _misfit(target, others.mirrored(), *moves))


def _misfit(target: _Pictures, views: _Pictures, moves: Tensor, products: Tensor) -> Tensor:
    """What moves of the target cannot explain of its views: (m, k)."""
    difference = (target.grey[:, None] - views.grey).flatten(2).mT  # (m, pixels, k)
    inner = moves @ difference  # (m, moves, k)
    left = (difference**2).sum(1) - (torch.linalg.solve(products, inner) * inner).sum(1)
    tint = ((target.tint[:, None] - views.tint) ** 2).mean((2, 3, 4))
    return left.clamp(min=0) / difference.shape[1] + tint


def _moves(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of pictures by shift down, right, and by scale, and their products: (m, 3, pixels), (m, 3, 3).

    There are none of pictures of one row or column.
    """
    height, width = grey.shape[-2:]
    if min(height, width) == 1:
        return grey.new_empty(len(grey), 0, height * width), grey.new_empty(len(grey), 0, 0)
    down, right = torch.gradient(grey, dim=(1, 2))
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    moves = torch.stack([part.flatten(1) for part in (down, right, y * down + x * right)], 1)
    return moves, moves @ moves.mT + 1e-3 * height * width * torch.eye(3)  # a flat picture's derivatives are zero


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
