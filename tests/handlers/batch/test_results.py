"""Files of answers: whole rows, resumed after any cut, never overwritten by accident."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwonnx.handlers.batch.errors import BatchError
from qwonnx.handlers.batch.results import Results

pytestmark = pytest.mark.fast


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def errors(tmp_path: Path) -> Path:
    return tmp_path / "out.errors.jsonl"


def ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def test_rows_are_lines_and_a_file_of_errors_exists_only_if_there_are_some(out: Path, errors: Path) -> None:
    with Results(out, errors) as results:
        results.answer({"custom_id": "ä", "text": "one\ntwo"})
        assert out.read_bytes().endswith(b"\n")
        assert "ä" in out.read_text()
        results.answer({"custom_id": "\ud800"})
        assert not errors.exists()
        results.error({"custom_id": "b"})
    assert ids(out) == ["ä", "\ud800"]
    assert ids(errors) == ["b"]


def test_what_exists_is_kept_unless_it_is_resumed_or_forced(out: Path, errors: Path) -> None:
    out.write_text('{"custom_id": "a"}\n')
    with pytest.raises(BatchError, match=r"exists: give --resume to go on, --force"):
        Results(out, errors)
    with Results(out, errors, resume=True) as results:
        assert results.answered == {"a"}
        results.answer({"custom_id": "b"})
    assert ids(out) == ["a", "b"]
    with Results(out, errors, force=True) as results:
        assert results.answered == set()
    assert out.read_bytes() == b""


def test_a_row_that_was_cut_off_anywhere_is_asked_again(out: Path, errors: Path) -> None:
    rows = [json.dumps({"custom_id": str(number), "text": "ü" * 3}, ensure_ascii=False) + "\n" for number in range(3)]
    whole = "".join(rows).encode()
    for cut in range(len(whole) + 1):
        out.write_bytes(whole[:cut])
        with Results(out, errors, resume=True) as results:
            kept = whole[:cut].count(b"\n")
            assert results.answered == {str(number) for number in range(kept)}
            for number in range(kept, 3):
                results.answer({"custom_id": str(number), "text": "ü" * 3})
        assert out.read_bytes() == whole


def test_another_file_is_not_resumed(out: Path, errors: Path) -> None:
    for content in ("a letter\n", '{"custom_id": "a"}\n{"id": 1}\n', "[]\n"):
        out.write_text(content)
        with pytest.raises(BatchError, match=r"line \d of .* is no answer of a batch"):
            Results(out, errors, resume=True)
        assert out.read_text() == content


def test_two_batches_do_not_share_a_file(out: Path, errors: Path) -> None:
    with Results(out, errors), pytest.raises(BatchError, match="another batch writes"):
        Results(out, errors, resume=True)
    with Results(out, errors, resume=True):
        pass


def test_errors_of_an_earlier_run_are_forgotten_when_told_and_not_before(out: Path, errors: Path) -> None:
    errors.write_text('{"custom_id": "old"}\n')
    with Results(out, errors) as results:
        assert ids(errors) == ["old"]
        results.forget_errors()
        results.error({"custom_id": "new"})
    assert ids(errors) == ["new"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, errors: Path) -> None:
    with pytest.raises(BatchError, match=r"cannot write .*No such file"):
        Results(tmp_path / "nowhere" / "out.jsonl", errors)
    with pytest.raises(BatchError, match=r"cannot write .*directory"):
        Results(tmp_path, errors, force=True)
    with Results(Path("/dev/full"), errors, force=True) as full, pytest.raises(BatchError, match=r"make room"):
        full.answer({"custom_id": "a"})
