"""What may be wrong with the folders of a data set: a sentence for each mistake, before any file is opened."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from .catalogue import SPLIT_FOLDERS, split_of
from .listing import Tree

Classes = Mapping[str, Mapping[str, str]]
"""Of each split, train first: the path of each class's folder by its name."""
ACCEPTED = "train, val and test (or training_set, valid, dev, eval, test_set, holdout, …)"


def listed_names(names: Sequence[str]) -> str:
    """The first five names and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def shown(name: str) -> str:
    """A name as Python writes it, so that what looks alike can be told apart."""
    return repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)


def unreadable_names(names: Iterable[str]) -> list[str]:
    """Names that are not UTF-8: nothing that raysweep writes could hold them."""
    wrong = [name for name in names if not _is_text(name)]
    if not wrong:
        return []
    count = "a name is" if len(wrong) == 1 else f"{len(wrong):,} names are"
    return [
        f"{count} not UTF-8: {listed_names([repr(name) for name in wrong])}; rename, for example with "
        "convmv -f latin1 -t utf8 -r --notest"
    ]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def alike(classes: Classes) -> list[str]:
    """Class folders whose names differ by nothing that can be seen."""
    spelled: dict[str, dict[str, str]] = defaultdict(dict)
    for folders in classes.values():
        for name, path in folders.items():
            spelled[" ".join(unicodedata.normalize("NFC", name).split())].setdefault(name, path)
    return [
        f"the class folders {' and '.join(map(shown, names.values()))} have names that look the same and are not; "
        "rename them alike, or merge them if they are one class"
        for names in spelled.values()
        if len(names) > 1
    ][:5]


def splits_taken_for_classes(tree: Tree, folders: Mapping[str, str], has_images: Mapping[str, bool]) -> list[str]:
    """Class folders that look like splits: no images of their own, and folders of the same names in them.

    Args:
        tree: of the data.
        folders: path of each class folder by its name.
        has_images: whether images lie in it directly.
    """
    inside = {name: tree[path].folders for name, path in folders.items() if tree[path].folders}
    bare = {name: names for name, names in inside.items() if not has_images[name]}
    for name, names in bare.items():
        if len(names) > 1 and set(names) <= folders.keys() - {name}:
            return [
                f"{name} has no images of its own but folders named as the classes beside it ({listed_names(names)}); "
                f"if it is a split, move the classes beside it into train/ and call it val or test; else move it away"
            ]
    if len(bare) < 2 or any(has_images.values()):
        return []
    where, common = listed_names(sorted(bare)), next(iter(bare.values()))
    same = len(common) > 1 and all(names == common for names in bare.values())
    if same and all(map(split_of, common)):
        return [
            f"{where} each hold {listed_names(common)}: the splits are to be outermost, as in "
            f"{common[0]}/{sorted(bare)[0]}; or put all images of a class directly into its folder to have them drawn"
        ]
    if same or all(map(_mentions_a_split, bare)):
        content = f"the same folders ({listed_names(common)})" if same else "folders alone"
        return [
            f"{where} have no images of their own but {content}, which makes them look like splits and not like "
            f"classes; splits are to be called {ACCEPTED}. If they are the classes, put their images directly into them"
        ]
    return []


def _mentions_a_split(name: str) -> bool:
    return any(word in SPLIT_FOLDERS for word in re.findall(r"[a-z]+", name.lower()))


def same_folders(tree: Tree) -> list[str]:
    """Folders that serve two classes or splits: train would leak into val or test."""
    return [
        f"{one or '.'} and {two} are the same folder; each split and class needs images of its own"
        for one, two in tree.shared[:5]
    ]


def differences(parts: Mapping[str, str], classes: Classes) -> Iterator[str]:
    """Splits whose class folders are not those of train."""
    for part in [part for part in parts if part != "train"]:
        for verb, names in (
            ("lacks", classes["train"].keys() - classes[part].keys()),
            ("alone has", classes[part].keys() - classes["train"].keys()),
        ):
            if names:
                yield (
                    f"{parts[part]} {verb} the class folders {listed_names(sorted(names))}; give it those of "
                    f"{parts['train']}, or move it away to have {part} images drawn from train"
                )


def too_few(
    parts: Mapping[str, str], counts: Mapping[str, Mapping[str, int]], ignored: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    """Splits in which a class has too few images to train on, or to hold one out.

    Args:
        parts: the folder of each split.
        counts: images of each class by split.
        ignored: in words, the files of each class that are not read, by split.
    """
    for part, images in counts.items():
        needed = least_of_a_class(part, parts)
        few = [name for name, count in images.items() if count < needed]
        if few:
            why = "an image of each class" if needed == 1 else "2 of each class, to hold one out,"
            unread = next((f" ({words} in {name})" for name in few if (words := ignored[part].get(name))), "")
            yield f"{parts[part] or 'it'} has too few images of {listed_names(few)}{unread}; {why} is the least"


def least_of_a_class(part: str, parts: Collection[str]) -> int:
    """Images that each class of a split must have, so that what is missing of the three splits can be drawn."""
    return 1 if part != "train" or len(parts) == 3 else 2
