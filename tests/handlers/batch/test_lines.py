"""Lines of a batch: what is work, what is refused, and what shares a beginning."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwonnx.handlers.batch.lines import read_lines, unique
from qwonnx.handlers.batch.work import Refused, Reply, Work

pytestmark = pytest.mark.fast

PATH = "/v1/chat/completions"
LIMIT = 2000


def line(custom_id: Any = "1", url: Any = PATH, **more: Any) -> bytes:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": {}, **more}).encode() + b"\n"


def read(*lines: bytes) -> list[Work | Refused]:
    return list(unique(read_lines(lines, {PATH}, LIMIT)))


def test_a_line_is_work_with_its_body_and_blank_lines_count_but_are_none() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "é"}]}
    (work,) = read(b"\n", b"  \r\n", line(body=body))
    assert isinstance(work, Work)
    assert (work.custom_id, work.number, work.path, work.group) == ("1", 3, PATH, None)
    assert json.loads(work.body) == body
    row = work.row(Reply(200, "abc", {"choices": []}))
    assert row["response"] == {"status_code": 200, "request_id": "abc", "body": {"choices": []}}
    assert row["error"] is None


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"nonsense\n", "invalid_json"),
        (b"[" * 1500 + b"\n", "invalid_json"),
        (b"\xff\xfe\n", "invalid_json"),
        (b"[1]\n", "invalid_line"),
        (b"{}\n", "invalid_custom_id"),
        (line(custom_id=7), "invalid_custom_id"),
        (line(custom_id=""), "invalid_custom_id"),
        (line(custom_id="x" * 513), "invalid_custom_id"),
        (line(method="GET"), "invalid_method"),
        (line(url="/v1/files"), "invalid_url"),
        (line(url=None), "invalid_url"),
        (line(url=["/v1/chat/completions"]), "invalid_url"),
        (line(body=None), "invalid_body"),
        (line(body=[]), "invalid_body"),
        (line(body={"stream": True}), "invalid_body"),
        (line(body={"x": "y" * LIMIT}), "too_large"),
    ],
)
def test_a_line_that_is_no_request_is_refused_with_its_number_and_a_code(bad: bytes, code: str) -> None:
    first, refused, last = read(line("first"), bad, line("last"))
    assert isinstance(first, Work)
    assert isinstance(last, Work)
    assert isinstance(refused, Refused)
    assert (refused.number, refused.failure.code) == (2, code)
    assert "\n" not in refused.failure.message
    assert len(refused.failure.message) < 400


def test_the_second_line_with_an_id_is_refused_and_names_the_first() -> None:
    found = read(line("a"), line("b"), line("a"), line("\ud800"), line("\ud800"))
    assert [isinstance(each, Work) for each in found] == [True, True, False, True, False]
    assert isinstance(found[2], Refused)
    assert (found[2].custom_id, found[2].failure.code) == ("a", "duplicate_custom_id")
    assert "line 1" in found[2].failure.message


def test_requests_with_the_same_long_beginning_are_a_group() -> None:
    def asked(system: str, question: str, role: str = "system", **more: Any) -> bytes:
        messages = [{"role": role, "content": system}, {"role": "user", "content": question}]
        return line(question, body={"messages": messages, **more})

    long, tools = "You are long. " * 40, [{"type": "function"}]
    found = read(
        asked(long, "a"),
        asked(long, "b"),
        asked(long, "c", tools=tools),
        asked("Be brief.", "d"),
        asked(long, "e", role="user"),
        line("f", body={"messages": "none"}),
    )
    groups = [each.group for each in found if isinstance(each, Work)]
    assert groups[0] == groups[1] is not None
    assert groups[2] not in (None, groups[0])
    assert groups[3:] == [None, None, None]


def test_a_model_answers_whatever_a_line_names() -> None:
    (work,) = read_lines([line(body={"model": "another", "n": 1})], {PATH}, LIMIT, "served")
    assert isinstance(work, Work)
    assert json.loads(work.body) == {"model": "served", "n": 1}
