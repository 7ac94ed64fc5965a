"""Batches: examples packed into rows of one length, without mixing them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from infra.miniature.conversation import Encoded
from infra.miniature.vision import MERGE, PATCH, patches


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples in rows.

    Attributes:
        ids: int64 [B, T].
        sequence: int64 [B, T], the index of a token's example in its row, from 0; -1 for padding.
        positions: int64 [3, B, T], of time, height and width, from 0 with every example.
        learnt: bool [B, T], true for tokens to predict.
        pictures: by grid (h, w) in patches: float32 [pictures, h * w, 768], and the flat indices into [B * T] of the
            tokens that they fill.
        example: int64 [B, T], the index of a token's example in the batch; -1 for padding.
    """

    ids: np.ndarray
    sequence: np.ndarray
    positions: np.ndarray
    learnt: np.ndarray
    pictures: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]
    example: np.ndarray


def fill(stream: Iterable[Encoded], num_rows: int, length: int) -> list[list[Encoded]]:
    """Take examples until the rows are full: the fourth that fits no row ends it, and these examples are dropped.

    Raises:
        ValueError: an example is longer than a row.
    """
    rows: list[list[Encoded]] = [[] for _ in range(num_rows)]
    left = [length] * num_rows
    refused = 0
    for example in stream:
        size = len(example.ids)
        if size > length:
            raise ValueError(f"an example of {size} tokens fits no row of {length}: make rows longer")
        # The row that it fills best.
        fitting = min((row for row in range(num_rows) if left[row] >= size), key=lambda row: left[row], default=None)
        if fitting is None:
            refused += 1
            if refused > 3:
                break
            continue
        rows[fitting].append(example)
        left[fitting] -= size
    return rows


def pack(rows: Sequence[Sequence[Encoded]], length: int, pad: int, image_pad: int) -> Batch:
    """Rows of examples as one batch."""
    shape = (len(rows), length)
    ids = np.full(shape, pad, np.int64)
    sequence, example = np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    positions = np.zeros((3, *shape), np.int64)
    learnt = np.zeros(shape, bool)
    found: dict[tuple[int, int], tuple[list[np.ndarray], list[int]]] = {}
    count = 0
    for number, row in enumerate(rows):
        start = 0
        for order, item in enumerate(row):
            span = slice(start, start + len(item.ids))
            ids[number, span], learnt[number, span] = item.ids, item.learnt
            sequence[number, span], example[number, span] = order, count
            grids = [(picture.shape[0] // PATCH, picture.shape[1] // PATCH) for picture in item.pictures]
            positions[:, number, span] = rope_positions(item.ids == image_pad, grids)
            places = iter((np.flatnonzero(item.ids == image_pad) + number * length + start).tolist())
            for picture, grid in zip(item.pictures, grids, strict=True):
                tensors, indices = found.setdefault(grid, ([], []))
                tensors.append(patches(picture))
                indices += [next(places) for _ in range(grid[0] * grid[1] // MERGE**2)]
            start, count = span.stop, count + 1
    stacked = {grid: (np.stack(tensors), np.array(indices)) for grid, (tensors, indices) in found.items()}
    return Batch(ids, sequence, positions, learnt, stacked, example)


def rope_positions(is_picture: np.ndarray, grids: Sequence[tuple[int, int]]) -> np.ndarray:
    """Position ids [3, T]: text counts on all axes; a picture counts rows and columns, then adds its larger side."""
    positions = np.zeros((3, len(is_picture)), np.int64)
    following, index = 0, 0
    pending = iter(grids)
    while index < len(is_picture):
        if is_picture[index]:
            rows, columns = (side // MERGE for side in next(pending))
            grid = np.mgrid[:1, :rows, :columns].reshape(3, -1)
            positions[:, index : index + rows * columns] = following + grid
            following += max(rows, columns)
            index += rows * columns
        else:
            positions[:, index] = following
            following, index = following + 1, index + 1
    return positions
