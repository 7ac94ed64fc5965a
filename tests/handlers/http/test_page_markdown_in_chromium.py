"""What a model says, on the page in a real browser: nodes, and nothing that runs. See chromium.py."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.handlers.http.chromium import (
    HOSTILE,
    LONG,
    NEEDS_CHROMIUM,
    SHOW,
    THOUGHTS,
    ended,
    opened,
    send,
)
from tests.handlers.serving import MODEL, Served

pytestmark = NEEDS_CHROMIUM

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
