"""The page in a real browser, with a live server. `make soak` runs it.

It needs Chromium (Debian's package `chromium`, or what QWONNX_CHROMIUM names) and `pip install playwright`, which then
downloads no browser. Every test also fails if the browser reports an error, or asks another machine for anything.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.settings import RuntimeSettings
from tests.handlers.serving import MODEL, Served, paced, serving
from tests.runtime import counting_model

CHROMIUM = os.environ.get("QWONNX_CHROMIUM") or shutil.which("chromium") or ""
pytestmark = [
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


# Markdown, and the HTML of the nodes that are made of it, without attributes but href and start.
RENDERED = {
    "a\nb\n\nc": "<p>a<br>b</p><p>c</p>",
    "**a *b* c** ***d*** ***e f* g**": "<p><strong>a <em>b</em> c</strong> <strong><em>d</em></strong> "
    "<strong><em>e f</em> g</strong></p>",
    "2 * 3 * 4, **open, snake_case_x, __init__": "<p>2 * 3 * 4, **open, snake_case_x, <strong>init</strong></p>",
    "`` a`b `` \\*c\\* &lt;i&gt; <br>": "<p><code>a`b</code> *c* &lt;i&gt; <br></p>",
    "In\n2020. x\n1. a\n2. b\n   - c\n\n     d": "<p>In<br>2020. x</p><ol start=1><li><p>a</p></li>"
    "<li><p>b</p><ul><li><p>c</p><p>d</p></li></ul></li></ol>",
    "3) a\n4) b\n\n- c": "<ol start=3><li><p>a</p></li><li><p>b</p></li></ol><ul><li><p>c</p></li></ul>",
    "1. a\n   ```\n   x\n    y\n   ```": "<ol start=1><li><p>a</p><pre><code>x\n y</code></pre></li></ol>",
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "# C#\n####### x": "<h3>C#</h3><p>####### x</p>",
    "a|b\n-|-\n`x|y`|\\|": "<table><thead><tr><th>a</th><th>b</th></tr></thead>"
    "<tbody><tr><td><code>x|y</code></td><td>|</td></tr></tbody></table>",
    "~~~\n<b>\n": "<pre><code>&lt;b&gt;\n</code></pre>",
    "[a](https://x.example/(b) 't') (http://y.example/z).": '<p><a href="https://x.example/(b)">a</a> '
    '(<a href="http://y.example/z">http://y.example/z</a>).</p>',
    "[`a`](HTTPS://x.example) [b](ftp://x.example) [c](/d) [e]": '<p><a href="https://x.example/"><code>a</code></a> '
    "[b](ftp://x.example) [c](/d) [e]</p>",
    "[j](jav&#39;ascript:1) [v](vbscript:1) [d](data:,1) [b](blob:x) [f](file:///x)": "<p>[j](jav'ascript:1) "
    "[v](vbscript:1) [d](data:,1) [b](blob:x) [f](file:///x)</p>",
    "*** \n_x": "<hr><p>_x</p>",
}
SHOW = """(text) => {
  localStorage.clear();
  localStorage['qwonnx.conversation.c'] = JSON.stringify({id: 'c', title: 'T', updated: 1, leaf: 'b', messages: [
    {id: 'a', parent: null, role: 'user', content: 'q'}, {id: 'b', parent: 'a', role: 'assistant', content: text}]});
  localStorage['qwonnx.current'] = 'c';
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def saying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model that always thinks and then says the hostile text."""
    folder = tmp_path_factory.mktemp("saying") / "artifact"
    counting_model.make(folder, script=f"<think>\n{THOUGHTS}\n</think>\n\n{HOSTILE}")
    with serving(folder, runtime=RUNTIME, settings=SETTINGS) as served:
        yield served


@pytest.fixture(scope="module")
def counting(counting_folder: Path) -> Iterator[Served]:
    """A model that counts until there is no more room, and says something else to each prompt."""
    with serving(counting_folder, runtime=RUNTIME, settings=SETTINGS) as served:
        yield served


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


def test_an_answer_streams_with_its_thoughts_folded_and_runs_nothing(browser: Any, saying: Served) -> None:
    with opened(browser, saying.url) as page:
        assert page.locator("h1").inner_text() in (MODEL, "qwonnx")
        send(page, "Hello <b>you</b>")
        ended(page)
        assert page.locator("#log .user .box").inner_text() == "Hello <b>you</b>"
        details = page.locator("#log details")
        assert details.get_attribute("open") is None
        assert not page.locator(".thoughts").is_visible()
        page.get_by_text("Thoughts", exact=True).click()
        assert page.locator(".thoughts").inner_text().strip() == THOUGHTS
        box = page.locator("#log .assistant .box")
        assert box.locator("img, script, iframe, object, b, i, form").count() == 0
        assert '<img src=x onerror="document.title=' in box.inner_text()
        links = box.locator("a")
        targets = links.evaluate_all("found => found.map(each => each.href)")
        assert targets == [
            "https://evil.example/e.png",
            "https://good.example/f",
            "https://auto.example/x_(y)",
            "mailto:a@b.example",
        ]
        assert all("noopener" in each for each in links.evaluate_all("found => found.map(each => each.rel)"))
        assert "[a](javascript:document.title='run')" in box.inner_text()
        assert box.locator("h3 em").inner_text() == "one"
        assert box.locator("ol > li").count() == 2
        assert box.locator("ol > li > ul > li").count() == 2
        assert box.locator("li input[type=checkbox]").is_checked()
        assert box.locator("blockquote del").inner_text() == "gone"
        assert box.locator("blockquote strong").inner_text() == "strong"
        assert "snake_case_name" in box.locator("blockquote").inner_text()
        assert box.locator("td.right").inner_text() == "<b>2</b>"
        assert box.locator("th.center").inner_text() == "a"
        assert box.locator("hr").count() == 1
        assert box.locator("pre").inner_text() == "print(\"<script>document.title='run'</script>\")"
        assert page.title() == "Hello <b>you</b> - qwonnx"
        assert page.evaluate("() => document.querySelectorAll('[onmouseover], [onerror]').length") == 0
        assert "tokens/s" in page.locator("#log .assistant").inner_text()
        assert re.search(r"Context: \d{3,4} of 4000 tokens \(\d+%\)", page.locator("#context").inner_text())


def test_no_text_can_become_html_or_a_script_even_by_the_pages_own_fault(browser: Any, saying: Served) -> None:
    faults = (
        "document.body.innerHTML = '<i>'",
        "document.body.setAttribute('onclick', 'document.title = 1')",
        "document.createElement('script').text = 'document.title = 1'",
        "new Image().setAttribute('onerror', 'document.title = 1')",
    )
    with opened(browser, saying.url, expected="Trusted|Content Security Policy") as page:
        for fault in faults:
            with pytest.raises(Exception, match="requires 'Trusted"):
                page.evaluate(f"() => {{ {fault}; }}")
        loads = (
            "(from) => new Promise((told) => { const i = new Image(); i.onerror = (e) => told(e.type); i.src = from; })"
        )
        assert page.evaluate(loads, "/health/live") == "error"
        assert page.title() == "qwonnx"


def test_markdown_becomes_the_nodes_that_it_means(browser: Any, counting: Served) -> None:
    with opened(browser, counting.url) as page:
        for text, html in RENDERED.items():
            page.evaluate(SHOW, text)
            page.reload()
            found = page.locator("#log .assistant .box").evaluate("each => each['inner' + 'HTML']")
            found = re.sub(r'<div class="(code|wide)"[^>]*>(<div.*?</div>)?|</div>', "", found)
            found = re.sub(r' (title|rel|target|scope|tabindex|role|aria-label)="[^"]*"', "", found)
            assert found.replace('start="1"', "start=1").replace('start="3"', "start=3") == html


def test_no_text_takes_long_to_show(browser: Any, counting: Served) -> None:
    pieces = (
        "[",
        "[a](",
        "![",
        "*a ",
        "**a",
        "_a ",
        "~~a ",
        "`",
        "``a` ",
        "> ",
        "- ",
        "|",
        "a|b\n-|-\n",
        "#",
        "<",
        "\\",
    )
    with opened(browser, counting.url) as page:
        for piece in (*pieces, "https://a.b/(", "> > - 1. * ", "```\n", "*a **b ***c "):
            page.evaluate(SHOW, (piece * 19_000)[:19_000])
            page.reload(timeout=LONG)
            page.locator("#log .assistant").wait_for(state="attached", timeout=LONG / 4)


def test_esc_and_the_button_stop_an_answer_and_what_came_stays(browser: Any, counting: Served) -> None:
    with opened(browser, counting.url) as page, paced(counting.engine, 0.02):
        for stop in (lambda: page.keyboard.press("Escape"), page.get_by_role("button", name="Stop").click):
            send(page, "Count")
            page.wait_for_selector("#log li:last-child .box p")
            stop()
            ended(page)
            assert "Stopped." in page.locator("#log li").last.inner_text()
        first, second = answers(page)
        assert 0 < len(first) < 2000
        assert 0 < len(second) < 2000
        page.wait_for_timeout(300)
        assert answers(page) == [first, second]
        page.reload()
        assert answers(page) == [first, second]


def test_versions_of_answers_and_messages_stay_reachable(browser: Any, counting: Served) -> None:
    with opened(browser, counting.url) as page:
        set_limit(page, 12)
        send(page, "One")
        ended(page)
        page.get_by_role("button", name="Regenerate").click()
        ended(page)
        assert page.get_by_text("2 of 2").is_visible()
        (one,) = answers(page)
        send(page, "Two")
        ended(page)
        page.get_by_role("button", name="Edit").first.click()
        page.get_by_label("Edited message").fill("Uno")
        page.keyboard.press("Enter")
        ended(page)
        assert page.locator("#log .user .box").all_inner_texts() == ["Uno"]
        (uno,) = answers(page)
        assert uno != one
        page.get_by_role("button", name="Previous version").click()
        assert page.locator("#log .user .box").all_inner_texts() == ["One", "Two"]
        assert answers(page)[0] == one
        page.get_by_role("button", name="Previous version").last.click()
        assert page.locator("#log .user .box").all_inner_texts() == ["One"]
        page.reload()
        assert page.locator("#log .user .box").all_inner_texts() == ["One"]
        page.get_by_role("button", name="Next version").first.click()
        assert page.locator("#log .user .box").all_inner_texts() == ["Uno"]
        page.get_by_role("button", name="Edit").click()
        page.keyboard.press("Escape")
        assert page.locator("#log .user .box").all_inner_texts() == ["Uno"]


def test_settings_and_the_system_prompt_are_sent(browser: Any, counting: Served) -> None:
    with opened(browser, counting.url) as page:
        bodies: list[dict[str, Any]] = []
        page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("System prompt").fill("Be brief.")
        for label, value in (("Temperature", "0.5"), ("top_p", "0.9"), ("top_k", "7"), ("Tokens of an answer", "5")):
            page.get_by_label(label).fill(value)
        page.get_by_label("Thinking").select_option("off")
        page.get_by_role("button", name="Save").click()
        send(page, "Hello")
        ended(page)
        page.reload()
        send(page, "Again")
        ended(page)
    for body in bodies:
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert (body["temperature"], body["top_p"], body["top_k"], body["max_tokens"]) == (0.5, 0.9, 7, 5)
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        assert (body["model"], body["stream"], body["timings"]) == (MODEL, True, True)
    assert [message["role"] for message in bodies[1]["messages"]] == ["system", "user", "assistant", "user"]


def test_the_servers_error_is_shown_as_it_says_it(browser: Any, counting: Served) -> None:
    with opened(browser, counting.url, expected="400") as page:
        send(page, "word " * 4000)
        ended(page)
        said = page.locator("#log .problem:visible").inner_text()
        assert re.fullmatch(r"the prompt has at least \d+ tokens and at most 3999 fit: shorten it", said)
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("top_p").fill("0")
        page.get_by_role("button", name="Save").click()
        page.get_by_role("button", name="New conversation").click()
        send(page, "Hello")
        ended(page)
        assert "top_p" in page.locator("#log .problem:visible").inner_text()


def test_a_model_is_chosen_where_there_are_several_also_below_a_base_path(browser: Any, counting_folder: Path) -> None:
    settings = ServerSettings(shutdown_seconds=0.5, ui=True, model_name="one,two", base_path="/prod")
    sent: list[Any] = []
    with serving(counting_folder, runtime=RUNTIME, settings=settings) as served:
        for path in ("/prod", "/prod/"):
            sent.clear()
            with opened(browser, served.url + path) as page:
                page.on("request", lambda request: sent.append(request))
                page.get_by_label("Model", exact=True).select_option("two")
                set_limit(page, 5)
                send(page, "Hello")
                ended(page)
                page.reload()
                page.get_by_text("of 4000 tokens").wait_for()
                assert page.get_by_label("Model", exact=True).input_value() == "two"
            (asked,) = [request for request in sent if request.method == "POST"]
            assert asked.url == f"{served.url}/prod/v1/chat/completions"
            assert asked.post_data_json["model"] == "two"


def test_a_server_that_is_away_or_fails_is_told_and_tried_again(browser: Any, counting: Served) -> None:
    with opened(browser, counting.url, expected="ERR_INTERNET_DISCONNECTED|500") as page:
        set_limit(page, 5)
        page.context.set_offline(True)
        send(page, "Hello")
        ended(page)
        assert "The server does not answer: " in page.locator("#log .problem:visible").inner_text()
        page.context.set_offline(False)
        page.get_by_role("button", name="Regenerate").click()
        ended(page)
        assert answers(page)[-1]
        send(page, counting_model.FAILING_TEXT)
        ended(page)
        said = page.locator("#log .problem:visible").inner_text()
        assert re.fullmatch(r"the server failed to answer: see its log under this request's x-request-id \(\S+\)", said)


def test_a_model_that_loads_is_waited_for(browser: Any, counting_folder: Path) -> None:
    loads = threading.Event()

    def load() -> Engine:
        loads.wait(30)
        return Engine.open(counting_folder, RUNTIME)

    settings = ServerSettings(shutdown_seconds=0.5, ui=True, hold_while_loading=0)
    with (
        serving(load, settings=settings, ready=False) as served,
        opened(browser, served.url, expected="503") as page,
    ):
        try:
            page.locator("#notice", has_text="loading").wait_for()
        finally:
            loads.set()
        page.get_by_text("of 4000 tokens").wait_for()
        assert not page.locator("#notice").is_visible()


def test_an_answer_that_was_cut_off_goes_on(browser: Any, saying: Served) -> None:
    with opened(browser, saying.url) as page:
        set_limit(page, 60)
        send(page, "Hello")
        ended(page)
        assert "limit of tokens" in page.locator("#log .assistant").inner_text()
        (begun,) = answers(page)
        bodies: list[dict[str, Any]] = []
        page.on("request", lambda request: bodies.append(request.post_data_json))
        page.get_by_role("button", name="Continue").click()
        ended(page)
        (whole,) = answers(page)
        assert whole.startswith(begun)
        assert len(whole) > len(begun)
        assert bodies[0]["continue_final_message"] is True
        assert bodies[0]["messages"][-1]["role"] == "assistant"


def test_a_key_is_asked_for_and_kept_for_the_tab_only(browser: Any, counting_folder: Path) -> None:
    settings = ServerSettings(shutdown_seconds=0.5, ui=True, api_key="secret")
    with (
        serving(counting_folder, runtime=RUNTIME, settings=settings) as served,
        opened(browser, served.url, expected="401") as page,
    ):
        page.get_by_label("The server needs a key").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("the API key is missing or wrong").wait_for()
        page.get_by_label("The server needs a key").fill("secret")
        page.keyboard.press("Enter")
        page.get_by_text("of 4000 tokens").wait_for()
        set_limit(page, 5)
        send(page, "Hello")
        ended(page)
        assert answers(page)[0]
        page.reload()
        page.get_by_text("of 4000 tokens").wait_for()
        assert "secret" not in json.dumps(page.evaluate("() => ({...localStorage})"))
        page.get_by_role("button", name="Settings").click()
        page.get_by_role("button", name="Forget the API key").click()
        assert page.evaluate("() => sessionStorage.length") == 0


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


def test_copy_buttons_copy(browser: Any, saying: Served) -> None:
    with opened(browser, saying.url) as page:
        send(page, "Hello")
        ended(page)
        page.get_by_role("button", name="Copy the code").click()
        page.get_by_text("Copied").first.wait_for()
        assert page.evaluate("() => navigator.clipboard.readText()").startswith('print("<script>')
        page.get_by_role("button", name="Copy the answer").click()
        page.get_by_text("Copied").nth(1).wait_for()
        copied = page.evaluate("() => navigator.clipboard.readText()")
        assert copied.strip() == HOSTILE.strip()
