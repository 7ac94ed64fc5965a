"""`qwonnx chat`: messages from a pipe and from a terminal, with a model here and with a server."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwonnx.handlers.cli.chat import Session
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.partner import LocalPartner, RemotePartner
from qwonnx.handlers.cli.transcript import Transcript
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from tests.handlers.serving import RUNTIME, serving
from tests.runtime import counting_model

SCRIPT = "<think>\nHe asks.\n</think>\n\nYes, \x1b[31mred."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that thinks and says one sentence."""
    return counting_model.make(tmp_path_factory.mktemp("talking") / "artifact", script=SCRIPT).folder


@pytest.fixture(params=["here", "server"])
def partner(request: pytest.FixtureRequest, folder: Path) -> Iterator[LocalPartner | RemotePartner]:
    if request.param == "here":
        with Engine.open(folder, RUNTIME) as engine:
            yield LocalPartner(engine, {"max_tokens": 60})
        return
    settings = ServerSettings(api_key="secret", shutdown_seconds=0.5)
    with serving(folder, settings=settings) as served:
        yield RemotePartner(f"{served.url}/v1/", "secret", {"max_tokens": 60})


def said(partner: Any, text: str, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Session:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    session = Session(partner, **fields)
    session.run()
    return session


def test_each_line_is_a_message_and_answers_go_to_stdout(
    partner: LocalPartner | RemotePartner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = said(partner, "Hello\n\nAgain \\\nand again\n", monkeypatch, system="Be brief.")
    out, err = capsys.readouterr()
    assert out == "Yes, \x1b[31mred.\n" * 2  # a pipe gets the answer to the letter
    assert "He asks." in err
    assert "tokens/s" in err
    assert session._transcript.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes, \x1b[31mred."},
        {"role": "user", "content": "Again \nand again"},
        {"role": "assistant", "content": "Yes, \x1b[31mred."},
    ]


def test_commands(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "talk.json"
    first = f"/system Be kind.\nHello\n/save {path}\n/save {path}\n/think off\n/new\n"
    text = f"{first}/load {path}\n/wish\n/help\n/exit\nHello\n"
    with Engine.open(folder, RUNTIME) as engine:
        session = said(LocalPartner(engine, {"max_tokens": 60}), text, monkeypatch)
    out, err = capsys.readouterr()
    assert out.count("Yes") == 1, "nothing is read after /exit"
    assert f"error: {path} exists: give another name" in err.replace("\n", " ").replace("  ", " ")
    assert "error: /wish is not understood" in err
    assert "/save FILE" in err
    assert session._thinking is False
    assert json.loads(path.read_text()) == {"messages": session._transcript.messages}


def test_a_message_that_cannot_be_answered_is_not_kept(
    partner: LocalPartner | RemotePartner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = said(partner, "x" * 3000 + "\nHello\n", monkeypatch)
    assert "error: " in capsys.readouterr().err
    assert session._transcript.messages[0]["content"] == "Hello"


@pytest.mark.parametrize(
    ("url", "key", "told"),
    [("ftp://x", "", "give a URL"), ("http://127.0.0.1:9", "", "does not answer"), (None, "wrong", "key is missing")],
)
def test_a_server_that_cannot_be_talked_to_is_said(folder: Path, url: str | None, key: str, told: str) -> None:
    settings = ServerSettings(api_key="secret", shutdown_seconds=0.5)
    with serving(folder, settings=settings) as served, pytest.raises(CommandError, match=told):
        RemotePartner(url or served.url, key, {})


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"messages": [{"role": "tool", "content": ""}]}', "\xff"])
def test_what_is_no_conversation_is_not_loaded(tmp_path: Path, content: str) -> None:
    path = tmp_path / "talk.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(CommandError, match="is not a conversation"):
        Transcript.load(path)


class Terminal:
    """The command in a terminal."""

    def __init__(self, *words: str) -> None:
        self._leader, follower = pty.openpty()
        command = [sys.executable, "-m", "qwonnx.handlers.cli", "chat", *words]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
        self.process = subprocess.Popen(
            command,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: _own_terminal(),
        )
        os.close(follower)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._leader, text.encode())

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until a text is shown, after what was waited for before."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.shown[-2000:]!r}"
            if select.select([self._leader], [], [], 0.2)[0]:
                data = os.read(self._leader, 1 << 16)
                self.shown += data.decode(errors="replace")
                if "\x1b[6n" in self.shown[-200:]:
                    self.type("\x1b[1;1R")  # the terminal's answer to where the cursor is
        self.shown = self.shown.partition(text)[2]

    def end(self) -> int:
        status = self.process.wait(20)
        os.close(self._leader)
        return status


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_in_a_terminal_history_several_lines_and_ctrl_c_work(counting_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    terminal = Terminal(str(counting_folder), "--max-model-len", "3000", "--max-tokens", "20")
    try:
        terminal.wait_for("lists commands")
        terminal.type("Hello\r")
        terminal.wait_for("tokens/s")
        terminal.type("\x1b[A")  # the message before
        time.sleep(0.5)
        terminal.type(" you \\\rand you\r")
        terminal.wait_for("tokens/s")
        terminal.type("gone\x03")  # Ctrl-C gives up a line
        time.sleep(0.5)
        terminal.type(f"/save {path}\r")
        terminal.wait_for("saved to")
        terminal.wait_for("m>")
        terminal.type("\x04")
        assert terminal.end() == 0
    finally:
        terminal.process.kill()
    messages = json.loads(path.read_text())["messages"]
    assert [each["content"] for each in messages if each["role"] == "user"] == ["Hello", "Hello you \nand you"]


def test_ctrl_c_interrupts_an_answer_and_keeps_what_there_is(counting_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    terminal = Terminal(str(counting_folder), "--max-model-len", "4000")
    try:
        terminal.wait_for("lists commands")
        terminal.wait_for("m>")
        terminal.type("Hello\r")
        terminal.wait_for("Hello")
        terminal.wait_for(" ncn")  # what the model says first
        terminal.type("\x03")
        terminal.wait_for("is kept")
        terminal.type(f"/save {path}\r")
        terminal.wait_for("saved to")
        terminal.type("/exit\r")
        assert terminal.end() == 0
    finally:
        terminal.process.kill()
    question, answer = json.loads(path.read_text())["messages"]
    assert question["content"] == "Hello"
    assert 0 < len(answer["content"]) < 4000
