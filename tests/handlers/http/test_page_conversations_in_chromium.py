"""Conversations in the storage of a real browser, in files and in other tabs. See chromium.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.handlers.http.chromium import (
    NEEDS_CHROMIUM,
    answers,
    ended,
    opened,
    send,
    set_limit,
)
from tests.handlers.serving import Served, paced

pytestmark = NEEDS_CHROMIUM


def test_conversations_are_listed_searched_exported_imported_and_deleted(
    browser: Any, counting: Served, tmp_path: Path
) -> None:
    file = tmp_path / "conversations.json"
    with opened(browser, counting.url) as page:
        set_limit(page, 5)
        for text in ("About apples", "About pears"):
            page.get_by_role("button", name="New conversation").click()
            send(page, text)
            ended(page)
        titles = page.locator("#list .open")
        assert titles.all_inner_texts() == ["About pears", "About apples"]
        page.get_by_label("Search conversations").fill("APPLE")
        assert titles.all_inner_texts() == ["About apples"]
        page.get_by_label("Search conversations").fill("")
        with page.expect_download() as download:
            page.get_by_role("button", name="Export").click()
        download.value.save_as(file)
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Delete About apples").click()
        assert titles.all_inner_texts() == ["About pears"]
        page.set_input_files("#file", file)
        page.get_by_text("1 conversations imported.").wait_for()
        assert titles.all_inner_texts() == ["About pears", "About apples"]
        page.reload()
        page.get_by_role("button", name="About apples", exact=True).click()
        assert page.locator("#log .user .box").all_inner_texts() == ["About apples"]
    exported = json.loads(file.read_text("utf-8"))
    assert (exported["format"], exported["version"], len(exported["conversations"])) == ("qwonnx-conversations", 1, 2)


def _changed(change: Callable[[dict[str, Any]], object]) -> str:
    messages = [
        {"id": "a", "parent": None, "role": "user", "content": "<img src=x onerror=alert(1)>"},
        {"id": "b", "parent": "a", "role": "assistant", "content": "Yes", "stats": "<b>"},
    ]
    conversation = {"id": "c", "title": "<b>T</b>", "updated": 1, "leaf": "b", "messages": messages}
    change(conversation)
    return json.dumps({"format": "qwonnx-conversations", "version": 1, "conversations": [conversation]})


REFUSED: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "cannot be imported"),
    "another format": ("[]", "no export of this page"),
    "a circle": (_changed(lambda each: each["messages"][0].update(parent="b")), "before its parent"),
    "two of an id": (_changed(lambda each: each["messages"][1].update(id="a")), "two messages have the id a"),
    "a wrong role": (_changed(lambda each: each["messages"][1].update(role="system")), "role"),
    "no text": (_changed(lambda each: each["messages"][0].update(content=5)), '"content" is not a string'),
    "an ill id": (_changed(lambda each: each.update(id="../x")), "an id is not"),
    "a number that is none": (_changed(lambda each: each.update(updated="now")), '"updated" is not a number'),
}


def test_files_are_checked_before_anything_of_them_is_stored(browser: Any, counting: Served, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    with opened(browser, counting.url) as page:
        for content, message in REFUSED.values():
            file.write_text(content)
            page.set_input_files("#file", file)
            page.locator("#notice", has_text=message).wait_for()
            assert page.locator("#list .open").count() == 0
        file.write_text(_changed(lambda each: each.update(unknown=1)))
        page.set_input_files("#file", file)
        page.get_by_role("button", name="<b>T</b>", exact=True).click()
        assert page.locator("#log .user .box").inner_text() == "<img src=x onerror=alert(1)>"
        assert not page.locator("#notice").is_visible()
        stored = page.evaluate("() => localStorage['qwonnx.conversation.c']")
        assert "unknown" not in stored


def test_another_tab_sees_what_was_said_and_what_was_deleted(browser: Any, counting: Served) -> None:
    with opened(browser, counting.url) as page:
        set_limit(page, 5)
        send(page, "Hello")
        ended(page)
        other = page.context.new_page()
        other.goto(counting.url)
        assert other.locator("#log .user .box").all_inner_texts() == ["Hello"]
        send(other, "Again")
        ended(other)
        page.get_by_text("Again").wait_for()
        assert page.locator("#log .user .box").all_inner_texts() == ["Hello", "Again"]
        other.on("dialog", lambda dialog: dialog.accept())
        other.get_by_role("button", name="Delete Hello").click()
        page.locator("#list .open").wait_for(state="detached")


def test_a_conversation_goes_on_in_the_background(browser: Any, counting: Served) -> None:
    with opened(browser, counting.url) as page, paced(counting.engine, 0.02):
        set_limit(page, 40)
        send(page, "First")
        page.get_by_role("button", name="New conversation").click()
        assert page.locator("#log li").count() == 0
        send(page, "Not yet")
        assert page.locator("#log li").count() == 0
        ended(page)
        page.get_by_role("button", name="First", exact=True).click()
        assert "limit of tokens" in page.locator("#log .assistant").inner_text()
        assert answers(page)[0]
