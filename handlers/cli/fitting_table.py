"""A table that loses nothing on a narrow terminal: columns that do not fit follow below, beside the first one again."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

_TEXT_WIDTH = 20  # columns that a text needs to be read, if it may be wrapped


class FittingTable(Table):
    """As Table; its cells are texts."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first, *others = range(len(self.columns))
        parts, current = [], [first]
        for index in others:
            if len(current) > 1 and self._width((*current, index)) > options.max_width:
                parts.append(current)
                current = [first]
            current.append(index)
        parts.append(current)
        for number, indexes in enumerate(parts):
            yield self._part(indexes, is_first=number == 0)

    def _width(self, indexes: Sequence[int]) -> int:
        """The width that columns need: all of it if they may not be wrapped."""
        _, right, _, left = self.padding
        edges = 1 + len(indexes) if self.box else 0
        return edges + sum(_needed(self.columns[index]) + left + right for index in indexes)

    def _part(self, indexes: Sequence[int], *, is_first: bool) -> Table:
        part = Table(
            title=self.title if is_first else None,
            title_justify=self.title_justify,
            box=self.box,
            padding=self.padding,
            pad_edge=self.pad_edge,
            show_header=self.show_header,
            show_footer=self.show_footer,
        )
        columns = [self.columns[index] for index in indexes]
        for column in columns:
            part.add_column(
                column.header, column.footer, justify=column.justify, no_wrap=column.no_wrap, overflow="fold"
            )
        cells = [list(column.cells) for column in columns]
        for number, row in enumerate(self.rows):
            part.add_row(*(each[number] for each in cells), style=row.style, end_section=row.end_section)
        return part


def _needed(column: Column) -> int:
    texts = [_plain(each) for each in (column.header, column.footer, *column.cells)]
    whole = max(map(cell_len, texts))
    if column.no_wrap:
        return whole
    word = max((cell_len(word) for text in texts for word in text.split()), default=0)
    return min(whole, max(word, _TEXT_WIDTH))


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)
