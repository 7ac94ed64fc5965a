"""`qwonnx route` before processes, one of which is killed, and SIGTERM under load."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen
from threading import Event
from typing import Any

import httpx
import pytest

from tests.handlers.cli.commands import error_line, qwonnx, running
from tests.handlers.serving import MODEL, until
from tests.handlers.whole.served_process import ServedProcess, process_serving
from tests.runtime import counting_model

PATH = "/v1/chat/completions"
STREAMS = 40
# Tokens of an answer that no machine ends before forty requests are asked.
LONG = 400
ENGINE = ("--max-num-seqs", 4, "--max-model-len", 512, "--threads", 1)


@contextmanager
def routing(folder: Path, tmp_path: Path, *options: object) -> Iterator[tuple[str, Popen[str], list[ServedProcess]]]:
    """The router's URL, its process, and those of two replicas."""
    with ExitStack() as held:
        replicas = [held.enter_context(process_serving(folder, tmp_path / f"{n}.log", *ENGINE)) for n in range(2)]
        urls = ",".join(f"http://127.0.0.1:{each.port}" for each in replicas)
        router = held.enter_context(running("route", "--to", urls, "--port", 0, *options))
        assert router.stdout is not None
        url = re.findall(r"http://127\.0\.0\.1:\d+", router.stdout.readline())[0]
        until(lambda: "router_replicas_ready 2" in httpx.get(f"{url}/metrics", trust_env=False).text)
        yield url, router, replicas


def stream(url: str, number: int, num_tokens: int, begun: Event | None = None) -> list[Any]:
    """The events of one answer, the last of them "[DONE]" or an error; `begun` is set with the first text."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Number {number}: what is it?"}],
        "max_tokens": num_tokens,
        "stream": True,
    }
    with httpx.stream("POST", f"{url}{PATH}", json=body, trust_env=False, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        events: list[Any] = []
        for line in answer.iter_lines():
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                events.append(data if data == "[DONE]" else json.loads(data))
                if begun is not None and text_of(events[-1:]):
                    begun.set()
    return events


def loads(url: str) -> list[int]:
    """Requests that the router waits for, by replica."""
    page = httpx.get(f"{url}/metrics", trust_env=False).text
    return [int(each) for each in re.findall(r"router_in_flight{.*} (\d+)", page)]


def text_of(events: list[Any]) -> str:
    chunks = [each for each in events if each != "[DONE]" and each.get("choices")]
    return "".join(each["choices"][0]["delta"].get("content") or "" for each in chunks)


@pytest.fixture(scope="module")
def slow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose answers last until a test has done something to them."""
    return counting_model.make(tmp_path_factory.mktemp("slow"), num_pairs=24).folder


def test_a_replica_that_is_killed_under_forty_streams_costs_none_that_had_not_begun(
    slow_folder: Path, tmp_path: Path
) -> None:
    with routing(slow_folder, tmp_path) as (url, _, replicas), ThreadPoolExecutor(STREAMS) as pool:
        begun = Event()
        running_streams = [pool.submit(stream, url, 0, LONG, begun)]
        assert begun.wait(timeout=60)
        lost = replicas[loads(url).index(1)]
        running_streams += [pool.submit(stream, url, number, 40) for number in range(1, STREAMS)]
        until(lambda: sum(loads(url)) >= 30)
        lost.process.send_signal(signal.SIGKILL)
        ended = [each.result() for each in running_streams]
        whole = [events for events in ended if events[-1] == "[DONE]"]
        cut = [events for events in ended if events[-1] != "[DONE]"]
        assert 0 < len(cut) <= 4, "as many as the replica had rows"
        for events in cut:
            assert events[-1]["error"]["code"] == "replica_lost"
            assert text_of(events), "what had not begun was asked again"
        assert len(whole) == STREAMS - len(cut)
        for number in (0, STREAMS - 1):
            events = stream(url, number, 40)
            assert events[-1] == "[DONE]"
            if ended[number][-1] == "[DONE]":
                assert text_of(events) == text_of(ended[number])


def test_a_signal_ends_what_runs_whole_or_with_an_error_and_the_router_with_zero(
    slow_folder: Path, tmp_path: Path
) -> None:
    with routing(slow_folder, tmp_path, "--shutdown-seconds", 3) as (url, router, _):
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(stream, url, number, LONG) for number in range(8)]
            until(lambda: sum(loads(url)) == 8)
            router.send_signal(signal.SIGTERM)
            for each in asked:
                last = each.result()[-1]
                assert last == "[DONE]" or last["error"]["code"]
        assert router.wait(timeout=15) == 0


def test_what_cannot_be_routed_is_one_line() -> None:
    for words, message in {
        (): "--to",
        ("--to", ""): "names no server",
        ("--to", "ftp://host"): "give a URL without a path",
        ("--to", "http://host/v1"): "give a URL without a path",
        ("--to", "http://host:99999"): "Port out of range",
        ("--to", "http://me:secret@host"): "a URL with a password",
        ("--to", "dns:host:abc"): "is not a port",
        ("--to", "http://host", "--port", "x"): "is not a port",
        ("--to", "http://host", "--nonsense"): "there is no option --nonsense",
    }.items():
        line = error_line(qwonnx("route", *words))
        assert message in line
        assert "secret" not in line
    shown = qwonnx("route", "--help")
    assert "qwonnx route --to http://10.0.0.1:8000" in shown.stdout
