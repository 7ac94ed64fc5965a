"""The presets: which requests they make, and what their rows say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwonnx.handlers.batch.errors import BatchError
from qwonnx.handlers.batch.tasks import ChatOptions, lines_of, messages_to, questions_about, text_of, translations
from qwonnx.handlers.batch.work import Refused, Reply, Work

pytestmark = pytest.mark.fast

OPTIONS = ChatOptions("model", max_tokens=9)


def reply(text: str) -> Reply:
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    return Reply(200, "id", {"choices": [choice], "usage": {"prompt_tokens": 3}})


def messages(work: Work | Refused) -> list[Any]:
    assert isinstance(work, Work)
    body = json.loads(work.body)
    assert (body["model"], body["max_tokens"], "temperature" in body) == ("model", 9, False)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    return [each["content"] for each in body["messages"]]


def test_each_question_is_asked_about_each_document_after_its_text(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_text("\ufeff" + "The second document. " * 20, encoding="utf-8")
    (tmp_path / "a.md").write_text("The first. " * 40)
    (tmp_path / ".hidden").write_text("not this")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    found = list(questions_about(tmp_path, ["Who?", "When?"], OPTIONS))
    assert [each.custom_id for each in found] == [
        *("a.md#1", "a.md#2", "deep/b.txt#1", "deep/b.txt#2", "picture.png#1", "picture.png#2")
    ]
    assert messages(found[0])[0] == messages(found[1])[0]
    assert messages(found[1])[1] == "When?"
    assert "\ufeff" not in messages(found[2])[0]
    groups = [each.group for each in found[:4] if isinstance(each, Work)]
    assert groups[0] == groups[1] != groups[2] == groups[3]
    assert [each.failure.code for each in found[4:] if isinstance(each, Refused)] == ["not_text", "not_text"]
    assert isinstance(found[3], Work)
    row = found[3].row(reply("Now."))
    assert (row["document"], row["question"], row["answer"], row["finish_reason"]) == (
        *("deep/b.txt", "When?", "Now.", "stop"),
    )


def test_each_segment_has_a_row_for_each_language_and_keeps_its_tags() -> None:
    lines = [
        b"Press <b>Start</b>, {0}.\n",
        b"\n",
        b'{"custom_id": "x", "text": "%1$s of ${total}"}\n',
        b"{name} left\n",
    ]
    found = list(translations(lines, ["German", "Swahili"], OPTIONS))
    assert [each.custom_id for each in found] == [
        *("1:German", "1:Swahili", "x:German", "x:Swahili", "4:German", "4:Swahili")
    ]
    assert "Swahili" in messages(found[1])[0]
    assert messages(found[4])[1] == "{name} left"
    first, named = found[0], found[2]
    assert isinstance(first, Work)
    assert isinstance(named, Work)
    assert first.check(reply("{0}, <b>Start</b> drücken.")) is None
    for broken in ("<b>Start</b> drücken.", "{0}, <b>Start drücken.", "{0} {0} <b>Start</b>", "{1}, <b>Start</b>"):
        failure = first.check(reply(broken))
        assert failure is not None
        assert failure.code == "tags_changed"
    assert named.check(reply("${total} 的 %1$s")) is None
    assert named.check(reply("total")) is not None
    assert first.row(reply("x"))["translation"] == "x"
    refused = list(translations([b'{"text": 1}\n', b"\xff\n"], ["German", "Swahili"], OPTIONS))
    assert [each.failure.code for each in refused if isinstance(each, Refused)] == ["invalid_line", "not_text"]


def test_messages_share_the_services_system_prompt() -> None:
    found = list(messages_to("You help. " * 40, [b"Where is it?\n", b'{"custom_id": "z", "text": "Why?"}\n'], OPTIONS))
    assert [messages(each)[1] for each in found] == ["Where is it?", "Why?"]
    assert [each.custom_id for each in found] == ["1", "z"]
    groups = {each.group for each in found if isinstance(each, Work)}
    assert len(groups) == 1
    assert None not in groups


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text(" \n")
    for read in (lines_of, text_of):
        with pytest.raises(BatchError, match="empty"):
            read(empty)
        with pytest.raises(BatchError, match="cannot be read"):
            read(tmp_path / "none")
    with pytest.raises(BatchError, match="is not a folder"):
        list(questions_about(empty, ["?"], OPTIONS))
