"""The page in a real browser by keyboard alone, for screen readers, light and dark. See chromium.py."""

from __future__ import annotations

import re
from typing import Any

from tests.handlers.http.chromium import (
    NEEDS_CHROMIUM,
    ended,
    opened,
    send,
    set_limit,
)
from tests.handlers.serving import Served

pytestmark = NEEDS_CHROMIUM


def test_light_and_dark_follow_the_system_and_the_button(browser: Any, counting: Served) -> None:
    def ground(page: Any) -> str:
        return str(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))

    with opened(browser, counting.url, color_scheme="dark") as page:
        dark = ground(page)
        page.emulate_media(color_scheme="light")
        light = ground(page)
        assert dark != light
        button = page.get_by_role("button", name="Theme")
        button.click()
        button.click()
        assert ground(page) == dark
        page.reload()
        assert (ground(page), button.inner_text()) == (dark, "Theme: dark")


def test_the_keyboard_is_enough(browser: Any, counting: Served) -> None:
    def focused(page: Any) -> str:
        return str(
            page.evaluate(
                "() => { const at = document.activeElement;"
                " return at.getAttribute('aria-label') || (at.labels && at.labels[0] || at).textContent.trim(); }"
            )
        )

    with opened(browser, counting.url) as page:
        set_limit(page, 5)
        page.reload()
        assert focused(page) == "Message"
        page.keyboard.type("first")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("second")
        page.keyboard.press("Enter")
        ended(page)
        assert page.locator("#log .user .box").inner_text() == "first\nsecond"
        assert focused(page) == "Message"
        seen = []
        for _ in range(40):
            page.keyboard.press("Shift+Tab")
            seen.append(focused(page))
            outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
            assert (
                seen[-1] in ("", "qwonnx")
                or outline != "none"
                or page.evaluate("() => document.activeElement === document.body")
            ), seen
        wanted = ["Regenerate", "Copy the answer", "Edit", "Copy the message", "Settings", "Theme: system", "Import"]
        wanted += ["Export", "Delete first second", "first second", "Search conversations", "New conversation"]
        places = [seen.index(name) for name in wanted]
        assert places == sorted(places)
        while focused(page) != "Regenerate":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        ended(page)
        assert page.get_by_text("2 of 2").is_visible()


def test_everything_has_a_name_for_screen_readers(browser: Any, counting: Served) -> None:
    with opened(browser, counting.url) as page:
        set_limit(page, 5)
        send(page, "Hello")
        ended(page)
        tree = page.locator("body").aria_snapshot()
        for line in (
            '- navigation "Conversations":',
            '- searchbox "Search conversations"',
            '- button "New conversation"',
            '- button "Hello"',
            '- button "Delete Hello"',
            '- list "Messages"',
            '- textbox "Message"',
            '- button "Send"',
            '- button "Copy the answer"',
            '- button "Regenerate"',
            "- status:",
        ):
            assert line in tree, tree
        nameless = re.findall(
            r"- (?:button|textbox|link|combobox|checkbox|spinbutton|searchbox|dialog)(?::|$| \[).*", tree
        )
        assert nameless == []
        page.get_by_role("button", name="Settings").click()
        dialog = page.get_by_role("dialog", name="Settings").aria_snapshot()
        assert not re.search(r"- (?:button|textbox|combobox|spinbutton)(?::|$| \[)", dialog, re.MULTILINE)
        assert dialog.count("spinbutton") == 4
