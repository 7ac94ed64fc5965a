"""The page of --ui in a real browser: what the tests of it share. `make soak` runs them.

They need Chromium (Debian's package `chromium`, or what QWONNX_CHROMIUM names) and `pip install playwright`, which then
downloads no browser. Every test also fails if the browser reports an error, or asks another machine for anything.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest

from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.settings import RuntimeSettings

CHROMIUM = os.environ.get("QWONNX_CHROMIUM") or shutil.which("chromium") or ""
NEEDS_CHROMIUM = [
    pytest.mark.soak,
    pytest.mark.skipif(find_spec("playwright") is None, reason="playwright is not installed"),
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
]

RUNTIME = RuntimeSettings(num_threads=1, max_num_seqs=4, max_num_batched_tokens=256, max_model_len=4000, spin=False)
SETTINGS = ServerSettings(shutdown_seconds=0.5, ui=True)
LONG = 20_000  # milliseconds
THOUGHTS = "It <b>asks</b>."
HOSTILE = """\
<img src=x onerror="document.title='run'"><script>document.title='run'</script>

[a](javascript:document.title='run') [b](java\tscript:alert(1)) [c](data:text/html,<script>1</script>)
[d](//evil.example/x) ![e](https://evil.example/e.png) [f](https://good.example/f "title") <javascript:alert(1)>

# Heading *one*

1. first **bold** and `code <i>`
   - inner [ ] x
   - [x] done
2. second

> quoted ~~gone~~ __strong__ snake_case_name

| a | b |
|:-:|--:|
| 1 | <b>2</b> |

---

https://auto.example/x_(y). mailto <mailto:a@b.example>

```python" onmouseover="document.title='run'
print("<script>document.title='run'</script>")
```
"""
SHOW = """(text) => {
  localStorage.clear();
  localStorage['qwonnx.conversation.c'] = JSON.stringify({id: 'c', title: 'T', updated: 1, leaf: 'b', messages: [
    {id: 'a', parent: null, role: 'user', content: 'q'}, {id: 'b', parent: 'a', role: 'assistant', content: text}]});
  localStorage['qwonnx.current'] = 'c';
}"""


@contextmanager
def opened(browser: Any, url: str, expected: str = "$.", **options: Any) -> Iterator[Any]:
    """The page in a profile of its own. `expected`: a pattern of errors that the console may have."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], accept_downloads=True, **options)
    page = context.new_page()
    page.set_default_timeout(LONG)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith((url, "data:", "blob:")) else errors.append(request.url),
    )
    try:
        page.goto(url)
        yield page
        assert [error for error in errors if not re.search(expected, error)] == []
    finally:
        context.close()


def send(page: Any, text: str) -> None:
    page.get_by_label("Message", exact=True).and_(page.locator("textarea")).fill(text)
    page.keyboard.press("Enter")


def ended(page: Any) -> None:
    """Wait for the end of the answer."""
    page.get_by_role("button", name="Send", exact=True).wait_for()
    page.locator("#log [aria-busy=true]").wait_for(state="detached")


def set_limit(page: Any, tokens: int) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Tokens of an answer at most").fill(str(tokens))
    page.get_by_role("button", name="Save").click()


def answers(page: Any) -> list[str]:
    return [text.strip() for text in page.locator("#log .assistant .box").all_inner_texts()]
