"""A crowd of clients, as a program of its own: crowd.py PORT QUESTIONS CLIENTS SECONDS

Half of them leave in the middle of a stream, a quarter sends what is no request, and the rest asks in all three APIs
and checks the answers; some of those write or read slowly. QUESTIONS is a file with a list of {"text", "max_tokens",
"answer"}. The last line is JSON: how often each thing happened, and what should not have.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODEL = "counting-model"  # as in tests/handlers/serving.py, whose imports take two seconds
_SECONDS = 60.0  # of one exchange
_APIS = ("chat", "messages", "responses")
_PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"GET / HTTP/9.9\r\n\r\n",
    b"\r\n\r\n\x00\x00\x00",
    b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{",
    b"A" * 40_000,
    b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
)
MALFORMED = (
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"model": 1}',
    b"[" * 5000,
    b'{"messages": [], "input": [], "model": "x"}',
)


@dataclass(slots=True)
class Crowd:
    """What the clients do until an end, and what came of it."""

    port: int
    questions: list[dict[str, Any]]
    end: float
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    async def client(self, number: int) -> None:
        chance = random.Random(number)
        act = (self._leave, self._garbage, self._leave, self._ask)[number % 4]
        while time.monotonic() < self.end:
            try:
                async with asyncio.timeout(_SECONDS):
                    self.outcomes[f"{act.__name__[1:]}: {await act(chance)}"] += 1
            except OSError as error:
                if act == self._ask:
                    self.faults.append(f"{act.__name__}: {error!r}")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
                self.faults.append(f"{act.__name__}: {error!r}"[:500])

    async def _leave(self, chance: random.Random) -> str:
        api, question = chance.choice(_APIS), chance.choice(self.questions)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(_request(api, _body(api, question, stream=True)))
            for _ in range(chance.randrange(5)):
                await reader.read(200)
            await asyncio.sleep(chance.choice((0, 0, 0.01)))
        finally:
            writer.transport.abort() if chance.random() < 0.5 else writer.close()
        return "left"

    async def _garbage(self, chance: random.Random) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            if chance.random() < 0.5:
                writer.write(chance.choice(GARBAGE))
                if chance.random() < 0.5:
                    await asyncio.wait_for(reader.read(100), 1)
                return "no HTTP"
            writer.write(_request(chance.choice(_APIS), chance.choice(MALFORMED)))
            status, _ = _answer(await reader.read())
            assert 400 <= status < 500, status
            return "refused"
        except (TimeoutError, ConnectionError):
            return "no HTTP"
        finally:
            writer.close()

    async def _ask(self, chance: random.Random) -> str:
        api, question, stream = chance.choice(_APIS), chance.choice(self.questions), chance.random() < 0.5
        slow = chance.choice(("", "", "writes slowly", "reads slowly"))
        request = _request(api, _body(api, question, stream=stream))
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 12)
        try:
            step = 40 if slow == "writes slowly" else len(request)
            for start in range(0, len(request), step):
                writer.write(request[start : start + step])
                await writer.drain()
                if step < len(request):
                    await asyncio.sleep(0.005)
            received = b""
            while piece := await reader.read(300 if slow == "reads slowly" else 1 << 16):
                received += piece
                if slow == "reads slowly":
                    await asyncio.sleep(0.005)
        finally:
            writer.close()
        status, body = _answer(received)
        if status == 429:
            return "busy"
        assert status == 200, (status, body[:300])
        text = "".join(_texts(api, body, stream=stream))
        assert text == question["answer"], (api, stream, text, question)
        return f"right, {api}, {slow or 'at once'}"


def _body(api: str, question: dict[str, Any], *, stream: bool) -> bytes:
    text, tokens = question["text"], question["max_tokens"]
    body: dict[str, Any] = {"model": MODEL, "stream": stream}
    if api == "responses":
        return json.dumps({**body, "input": text, "max_output_tokens": tokens}).encode()
    return json.dumps({**body, "messages": [{"role": "user", "content": text}], "max_tokens": tokens}).encode()


def _request(api: str, body: bytes) -> bytes:
    head = f"POST {_PATHS[api]} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"content-type: application/json\r\n\r\n" + body


def _answer(received: bytes) -> tuple[int, bytes]:
    """The status and the body, out of its chunks."""
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), received[:100]
    if b"transfer-encoding: chunked" in head.lower():
        rest, body = body, b""
        while True:
            size, _, rest = rest.partition(b"\r\n")
            assert size, "the answer was cut off"
            if int(size, 16) == 0:
                break
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return int(head[9:12]), body


def _texts(api: str, body: bytes, *, stream: bool) -> Iterator[str]:
    if stream:
        lines = [line.removeprefix("data: ") for line in body.decode().splitlines() if line.startswith("data: {")]
        for event in map(json.loads, lines):
            assert "error" not in event, event
            if api == "chat":
                yield from (choice["delta"].get("content") or "" for choice in event["choices"])
            elif api == "messages" and event["type"] == "content_block_delta":
                yield event["delta"].get("text", "")
            elif api == "responses" and event["type"] == "response.output_text.delta":
                yield event["delta"]
        return
    whole = json.loads(body)
    if api == "chat":
        yield whole["choices"][0]["message"]["content"]
    elif api == "messages":
        yield from (block.get("text", "") for block in whole["content"])
    else:
        for item in whole["output"]:
            yield from (part["text"] for part in item.get("content", ()) if part["type"] == "output_text")


async def main(port: int, questions: Path, clients: int, seconds: float) -> None:
    crowd = Crowd(port, json.loads(questions.read_text()), time.monotonic() + seconds)
    await asyncio.gather(*(crowd.client(number) for number in range(clients)))
    print(json.dumps({"outcomes": crowd.outcomes, "faults": crowd.faults[:20], "num_faults": len(crowd.faults)}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
