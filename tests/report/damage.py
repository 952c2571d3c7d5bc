"""A run folder with every file that a report reads, and what can happen to one of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from matplotlib.image import imsave

from tests.report.synthetic_runs import epoch_rows, final_result, finished, planned, write_run

AUDIT = {
    "images": {"train": 100, "val": 40, "test": 50},
    "pairs": [{"kind": "exact", "split_a": "train", "split_b": "test", "pairs": 2}],
    "test_with_copy_in_train": 2, "val_with_copy_in_train": 0, "contradicting_labels": 1,
    "imbalance": {"train": 9.0, "val": 1.0, "test": 1.0},
    "class_counts": {"train": {"cat": 90, "dog": 10}, "val": {"cat": 20, "dog": 20}, "test": {"cat": 25, "dog": 25}},
    "duplicated_test": [3, 7],
}  # fmt: skip
TABLE = """kind,split_a,split_b,name_a,name_b,label_a,label_b,similarity,same_label
exact,train,test,cat/1.png,dog/2.png,cat,dog,1.0000,False
exact,train,test,cat/2.png,cat/3.png,cat,cat,1.0000,True
"""
SAMPLES = {
    "tile": 8,
    "samples": [{"image": "a", "true": "1", "predicted": other, "probability": 0.5} for other in ("1", "8")],
    "superclasses": {"accuracy": 0.9, "errors_within": 0.5},
}


def whole_run(folder: Path) -> Path:
    """A run of two depths and two rates, one of which failed and one was stopped, with everything beside it."""
    outcomes = [finished(planned(depth, seed=seed), 0.9 + depth / 100) for depth in (1, 3) for seed in (0, 1)]
    stopped, failed = planned(1, lr=0.1), planned("all")
    outcomes += [(stopped, "stopped", epoch_rows(stopped, 0.8, 3)), (failed, "failed", [])]
    write_run(folder, outcomes, final=final_result(trial=outcomes[2][0].trial))
    decision = {
        "backbone": "tf_efficientnet_lite0", "depth_label": "1", "trials": [outcomes[0][0].trial], "phases": [],
        "mebibytes": 1.0, "prefix_ms_per_image": 2.0, "images_computed": 100, "images_an_epoch": 120,
        "images_read": 720, "predicted_saving_s": 3.0, "store": True, "reason": "saves time",
    }  # fmt: skip
    made = {"backbone": "x", "cuts": 1, "images": 100, "seconds": 1.0, "lanes": 1, "mebibytes": 1.0, "problem": ""}
    (folder / "features.json").write_text(json.dumps({"decisions": [decision], "made": [made], "stored": []}))
    (folder / "audit.json").write_text(json.dumps(AUDIT))
    (folder / "audit.csv").write_text(TABLE)
    (folder / "final" / "recommended" / "samples.json").write_text(json.dumps(SAMPLES))
    pixels = np.random.RandomState(0).randint(0, 256, (8, 16, 3), dtype=np.uint8)
    imsave(folder / "audit_pairs.png", pixels)
    imsave(folder / "final" / "recommended" / "samples.png", pixels)
    return folder


def files_of(folder: Path) -> list[Path]:
    """The files of a run, but for its lock."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def damage(path: Path, random: Random) -> str:
    """Do something to a file; returns what."""
    kinds: list[Callable[[Path, Random], None]] = [cut_off, emptied, nulled, flipped, gone]
    if path.suffix in (".json", ".jsonl"):
        kinds += [without_a_field, with_another_value, with_another_value, with_a_line_nulled, without_a_line]
    if path.suffix in (".yaml", ".csv"):
        kinds += [without_a_line, with_a_line_nulled]
    if path.suffix == ".npz":
        kinds += [with_other_numbers, with_other_numbers]
    kind = random.choice(kinds)
    kind(path, random)
    return f"{path.name} {kind.__name__}"


def cut_off(path: Path, random: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content))])


def emptied(path: Path, random: Random) -> None:
    path.write_bytes(b"")


def nulled(path: Path, random: Random) -> None:
    path.write_text("null")


def gone(path: Path, random: Random) -> None:
    path.unlink()


def flipped(path: Path, random: Random) -> None:
    """Three bytes become others."""
    content = bytearray(path.read_bytes())
    for _ in range(3):
        content[random.randrange(len(content))] = random.randrange(256)
    path.write_bytes(bytes(content))


def without_a_line(path: Path, random: Random) -> None:
    lines = path.read_text().splitlines()
    del lines[random.randrange(len(lines))]
    path.write_text("\n".join(lines) + "\n")


def with_a_line_nulled(path: Path, random: Random) -> None:
    lines = path.read_text().splitlines()
    lines[random.randrange(len(lines))] = "null"
    path.write_text("\n".join(lines) + "\n")


def without_a_field(path: Path, random: Random) -> None:
    def remove(tree: Any, key: Any) -> None:
        del tree[key]

    _changed(path, random, remove)


def with_another_value(path: Path, random: Random) -> None:
    def put(tree: Any, key: Any) -> None:
        tree[key] = random.choice([float("nan"), float("inf"), None, "text", -1, 10**30, [], {}, [[1]], True, 0])

    _changed(path, random, put)


def with_other_numbers(path: Path, random: Random) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    key = random.choice(sorted(arrays))
    value = arrays[key]
    arrays[key] = random.choice([value.astype(str), value.reshape(-1)[:3], np.full(value.shape, np.nan), value[None]])
    np.savez(path, **arrays)


def _changed(path: Path, random: Random, change: Callable[[Any, Any], None]) -> None:
    """Change one place of a JSON file, or of one of its lines."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = random.randrange(len(lines))
    tree = json.loads(lines[number])
    change(*random.choice(list(_places(tree))))
    lines[number] = json.dumps(tree)
    path.write_text("\n".join(lines) + "\n")


def _places(tree: Any) -> Any:
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])
