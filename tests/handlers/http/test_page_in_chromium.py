"""The page in a real browser, with a live server: answers, versions, settings, errors, keys. See chromium.py."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from tests.handlers.http.chromium import (
    NEEDS_CHROMIUM,
    RUNTIME,
    answers,
    ended,
    opened,
    send,
    set_limit,
)
from tests.handlers.serving import MODEL, Served, paced, serving
from tests.runtime import counting_model

pytestmark = NEEDS_CHROMIUM


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
