"""Duplicates and leaks: images that occur more than once within and across train, val and test.

A copy in train makes a test image easy for the wrong reason, the more so the more layers are
trained: depth looks better than it is. Barz & Denzler 2020, "Do we train on test data? Purging
CIFAR of near-duplicates", arXiv:1902.00423, found such copies of 3 % of CIFAR-10's test images
and of 9 % of CIFAR-100's, by nearest neighbours among a network's features and people who looked.

Three kinds are told apart. `exact`: the same pixels. `mirror`: the same after a left-right flip.
`near`: the same picture stored again, or cropped or scaled a little, in either orientation; not one
whose brightness was changed. Candidates for the last are the nearest neighbours by features, where
there are any, and always by small pictures, as a random network's features find little. Each is
confirmed on the small pictures, and what counts is whether it *stands out*: handwritten digits of a
class resemble each other as much as an image its JPEG copy, yet each has many such neighbours and a
copy has one. Of a film's frames only those that hardly differ are therefore found.

Found of planted copies: all exact and mirrored ones; of JPEG copies of quality 50 to 90, 90 % of
8×8 digits and of fake images, 91 % of 32×32 patches of photographs (every one but of flat patches)
and all of synthetic textures. Flagged as near of clean images: 0.2 % of digits, no fake image, no
texture, 4 % of the patches, which are neighbours in one photograph. CIFAR was not at hand.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raysweep.datasets import Dataset, Split
from raysweep.ledger import write_text
from raysweep.recipe import RecipeError

SPLITS = ("train", "val", "test")
KINDS = ("exact", "mirror", "near")
COLUMNS = ("kind", "split_a", "split_b", "name_a", "name_b", "label_a", "label_b", "similarity", "same_label")
"""Of audit.csv."""

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
SHOWN = 12
"""Pairs in the picture."""


@dataclass(frozen=True)
class Image:
    """An image of a split."""

    split: str
    position: int
    """In its split."""
    name: str
    label: str


@dataclass(frozen=True)
class Pair:
    """Two images of which one is a copy of the other."""

    kind: Literal["exact", "mirror", "near"]
    a: Image
    b: Image
    """Of the same split or of a later one."""
    similarity: float
    """1 for exact and mirror; for near, 1 minus the root mean square difference of the small pictures, of 255."""

    @property
    def same_label(self) -> bool:
        """False where one of the labels must be wrong, or both are right of an ambiguous image."""
        return self.a.label == self.b.label

    def row(self) -> dict[str, Any]:
        """A row of audit.csv."""
        a, b = self.a, self.b
        cells = (self.kind, a.split, b.split, a.name, b.name, a.label, b.label, f"{self.similarity:.4f}")
        return dict(zip(COLUMNS, (*cells, self.same_label), strict=True))


@dataclass(frozen=True)
class Findings:
    """What the audit found."""

    pairs: tuple[Pair, ...]
    """The worst first: leaks into test, then into val, then copies within a split. Of a group of equal
    images each is paired with the group's first in every split, not with every other."""
    class_counts: dict[str, dict[str, int]]
    """Images by split and class."""

    @cached_property
    def images(self) -> dict[str, int]:
        """Images of each split."""
        return {split: sum(counts.values()) for split, counts in self.class_counts.items()}

    @cached_property
    def imbalance(self) -> dict[str, float]:
        """Largest to smallest class of each split; a class without images counts as one image."""
        return {
            split: max(counts.values()) / max(min(counts.values()), 1) for split, counts in self.class_counts.items()
        }

    @cached_property
    def duplicated_test(self) -> tuple[int, ...]:
        """Positions of the test images with a copy in train or val, which the final fit learns from."""
        return tuple(sorted({*self.copied("test", "train"), *self.copied("test", "val")}))

    @property
    def contradicting(self) -> int:
        """Pairs whose labels differ."""
        return sum(not pair.same_label for pair in self.pairs)

    def copied(self, split: str, other: str, kinds: Sequence[str] = KINDS) -> set[int]:
        """Positions of the images of `split` that have a copy in `other`."""
        pairs = [pair for pair in self.pairs if pair.kind in kinds]
        ends = [(pair.a, pair.b) for pair in pairs] + [(pair.b, pair.a) for pair in pairs]
        return {one.position for one, two in ends if (one.split, two.split) == (split, other)}

    def summary(self) -> dict[str, Any]:
        """What audit.json holds."""
        counts = Counter((pair.kind, pair.a.split, pair.b.split) for pair in self.pairs)
        return {
            "images": self.images,
            "pairs": [dict(zip((*COLUMNS[:3], "pairs"), (*key, counts[key]), strict=True)) for key in counts],
            "test_with_copy_in_train": len(self.copied("test", "train")),
            "val_with_copy_in_train": len(self.copied("val", "train")),
            "contradicting_labels": self.contradicting,
            "imbalance": self.imbalance,
            "class_counts": self.class_counts,
            "duplicated_test": self.duplicated_test,
        }


@dataclass(frozen=True)
class _Links:
    """Pairs of groups of equal images."""

    kind: Literal["exact", "mirror", "near"]
    ends: np.ndarray  # (links, 2) of groups
    similarity: np.ndarray  # (links,)


def audit(dataset: Dataset, features: Mapping[str, np.ndarray] | None = None) -> Findings:
    """Look for copies within and across the splits, and count the classes.

    Takes 35 s for 60,000 images of 32×32 pixels without features on one busy core, 0.1 s for 1,797 digits,
    and 25 s more with 1,280 features (two gigabytes of memory).

    Args:
        dataset: its images are read twice, in batches.
        features: penultimate outputs of a network on each split's images, in order: (n, d) float32.
            None, or a split missing: candidates come from the pixels alone.
    """
    digests, mirrored = _digests(dataset)
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)  # images of one group are equal
    exact = np.flatnonzero(np.bincount(group) > 1)
    least = 0 if len(group) <= EVERY_PAIR else len(dataset.train)
    queries = torch.from_numpy(np.flatnonzero(first >= least))
    directions = _directions(features)
    directions = None if directions is None else directions[first]
    links = [
        _Links("exact", np.stack([exact, exact], 1), np.ones(len(exact))),
        _mirror_links(digests[first], mirrored[first]),
        _near_links(_pictures(dataset)[torch.from_numpy(first)], directions, queries),
    ]
    return Findings(tuple(_pairs(dataset, group, links)), class_counts(dataset))


def class_counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Images by split and class."""
    names = dataset.class_names
    counts = {name: np.bincount(part.labels, minlength=len(names)) for name, part in _parts(dataset)}
    return {split: dict(zip(names, number.tolist(), strict=True)) for split, number in counts.items()}


def refuse_overlap(dataset: Dataset, findings: Findings) -> None:
    """Refuse splits that share images: a file that is in both, or most of the smaller one copied exactly.

    Raises:
        RecipeError: with the numbers and what to do, a sentence for each two splits.
    """
    problems = []
    for other, split in (("train", "test"), ("val", "test"), ("train", "val")):
        a, b = getattr(dataset, other), getattr(dataset, split)
        shared = len(np.intersect1d(a.rows, b.rows)) if a.pool is b.pool else 0
        small, large = (split, other) if len(b) <= len(a) else (other, split)
        copied, of = len(findings.copied(small, large, ("exact", "mirror"))), min(len(a), len(b))
        if shared or copied > of / 2:
            problems.append(
                f"{shared or copied} of the {of} {small} images are {large} images too: "
                f"{split} would measure what was learnt by heart. Give {split} images of its own, or move its folder "
                f"away to have {split} images drawn from train"
            )
    if problems:
        raise RecipeError(*problems)


def accuracy_without(correct: np.ndarray, duplicated: Sequence[int]) -> dict[str, float | int | None]:
    """Test accuracy with and without the duplicated images, by the names that the report reads.

    Args:
        correct: (n_test,) bool, in the order of the test split.
        duplicated: positions, such as `Findings.duplicated_test`.
    """
    rest = np.delete(np.asarray(correct, dtype=bool), np.asarray(duplicated, dtype=np.int64))
    return {
        "test_accuracy": float(np.mean(correct)),
        "test_accuracy_without_duplicates": float(rest.mean()) if len(rest) else None,
        "duplicated_test_images": len(correct) - len(rest),
    }


def write(folder: Path, findings: Findings, dataset: Dataset) -> None:
    """Write audit.csv, audit.json and, if there are pairs, audit_pairs.png into a run folder."""
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(pair.row() for pair in findings.pairs)
    write_text(folder / "audit.csv", table.getvalue())
    write_text(folder / "audit.json", json.dumps(findings.summary(), indent=1) + "\n")
    if findings.pairs:
        (folder / "audit_pairs.png").write_bytes(picture(worst(findings.pairs), dataset))


def worst(pairs: Sequence[Pair], most: int = SHOWN) -> list[Pair]:
    """The first pairs of every kind in turn: exact copies alone would be dull, and near ones need a look."""
    seen: Counter[str] = Counter()
    turns = []
    for place, pair in enumerate(pairs):
        turns.append((seen[pair.kind], KINDS.index(pair.kind), place))
        seen[pair.kind] += 1
    chosen = sorted(turns)[:most]
    return [pairs[place] for _, _, place in sorted(chosen, key=lambda turn: turn[1:])]


def picture(pairs: Sequence[Pair], dataset: Dataset, columns: int = 3) -> bytes:
    """The pairs side by side with split, name and label under each image, as a PNG file 1,350 pixels wide."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = -(-len(pairs) // columns)
    with mpl.rc_context({"text.parse_math": False, "font.size": 8}):  # names may hold a dollar sign
        figure = Figure(figsize=(9, 2.3 * rows), dpi=150)
        cells = figure.subplots(rows, columns, squeeze=False).flat
        for cell in cells:
            cell.axis("off")
        for cell, pair in zip(figure.axes, pairs, strict=False):
            differ = "" if pair.same_label else ", labels differ"
            alike = f" {pair.similarity:.3f}" if pair.kind == "near" else ""
            cell.set_title(f"{pair.kind}{alike}{differ}", fontsize=9, color="k" if pair.same_label else "#b3261e")
            for left, image in ((0.0, pair.a), (0.52, pair.b)):
                inside = cell.inset_axes((left, 0.24, 0.48, 0.76))
                inside.imshow(getattr(dataset, image.split).images([image.position])[0].transpose(1, 2, 0))
                inside.axis("off")
                text = "\n".join(_short(part) for part in (image.split, image.name, image.label))
                cell.text(left + 0.24, 0.21, text, ha="center", va="top")
        figure.subplots_adjust(0.01, 0.02 / rows, 0.99, 1 - 0.12 / rows, wspace=0.06, hspace=0.16)
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()


def _short(text: str, most: int = 20) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _parts(dataset: Dataset) -> list[tuple[str, Split]]:
    return [(name, getattr(dataset, name)) for name in SPLITS]


def _batches(dataset: Dataset, pixels: int = 2**22) -> Iterator[np.ndarray]:
    """All images, train first, then val and test: (batch, 3, height, width) uint8."""
    for _, part in _parts(dataset):
        size = max(1, pixels // int(np.prod(part.pool.shape[-2:])))
        for start in range(0, len(part), size):
            yield part.images(slice(start, start + size))


# ---- exact and mirrored copies ----


def _digests(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all images and of their mirrors: (n,) of 16 bytes each."""
    digests: list[bytes] = []
    mirrored: list[bytes] = []
    for batch in _batches(dataset):
        digests.extend(map(_digest, batch))
        mirrored.extend(map(_digest, batch[..., ::-1]))
    return np.array(digests, dtype="V16"), np.array(mirrored, dtype="V16")


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _mirror_links(digests: np.ndarray, mirrored: np.ndarray) -> _Links:
    """Groups that are another's mirror. `digests` ascend, a group each."""
    group_of = {digest: group for group, digest in enumerate(digests.tolist())}
    other = np.array([group_of.get(digest, -1) for digest in mirrored.tolist()])
    one = np.flatnonzero(other > np.arange(len(other)))  # each once, and no image that is its own mirror
    return _Links("mirror", np.stack([one, other[one]], 1), np.ones(len(one)))


# ---- near copies ----


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


def _directions(features: Mapping[str, np.ndarray] | None) -> Tensor | None:
    """Features of all images without their mean, at length 1: (n, d); None unless every split has them."""
    if features is None or any(features.get(split) is None for split in SPLITS):
        return None
    every = torch.from_numpy(np.concatenate([np.asarray(features[split], np.float32) for split in SPLITS]))
    return F.normalize(every - every.mean(0))


@torch.inference_mode()
def _near_links(pictures: _Pictures, features: Tensor | None, queries: Tensor) -> _Links:
    """Pairs of which one stands out among the neighbours of the other.

    Args:
        pictures: n of them.
        features: (n, d), or None.
        queries: whose neighbours to look at.
    """
    found = [_neighbours(_reduced([pictures.vectors(), pictures.mirrored().vectors()]), queries)]
    usual = found[0].shape[1]
    if usual == 0:
        return _Links("near", np.empty((0, 2), np.int64), np.empty(0))
    if features is not None:
        found.append(_neighbours(_reduced([features]), queries))
    candidates = torch.cat(found, 1)  # (queries, k or 2 k), a neighbour perhaps twice
    residual = torch.stack([_residual(pictures, queries, column) for column in candidates.T], 1)
    variance = pictures.variance()[queries, None]
    stands_out = residual <= STANDS_OUT * residual[:, :usual].amax(1, keepdim=True)
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


# ---- from groups to images ----


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
        for split, part in _parts(dataset)
        for position, (name, label) in enumerate(zip(part.names, part.labels.tolist(), strict=True))
    ]


def _gravity(pair: Pair) -> tuple[Any, ...]:
    """Sorts the worst first."""
    a, b = SPLITS.index(pair.a.split), SPLITS.index(pair.b.split)
    return a == b, -b, a, pair.same_label, KINDS.index(pair.kind), -pair.similarity, pair.a.position, pair.b.position
