"""`qwonnx generate` in this process: its output on each stream, and its request to the model."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from qwonnx.handlers.chat.parts import End, EndReason, Part, Usage
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.generate import AnswerPrinter, form_of, generate, messages_of, print_stats
from qwonnx.runtime.engine.request import FinishReason
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.text.answer_events import ArgumentsDelta, CallClosed, CallOpened, ContentDelta, ReasoningDelta
from tests.handlers.fakes import output
from tests.runtime import counting_model

pytestmark = pytest.mark.fast

END = End(EndReason.STOP, Usage(7, 0, 3, 0))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(*parts: Part) -> None:
    printer = AnswerPrinter()
    for part in parts:
        printer.print(part)


def test_thoughts_go_to_stderr_and_the_answer_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    printed(ReasoningDelta("He "), ReasoningDelta("[b]asks."), ContentDelta("Ye"), ContentDelta("s."), END)
    assert capsys.readouterr() == ("Yes.\n", "He [b]asks.\n\n")


def test_thoughts_that_no_answer_follows_end_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    printed(ReasoningDelta("Hm."), CallOpened("weigh"), ArgumentsDelta("{}"), CallClosed(), END)
    assert capsys.readouterr() == ("", "Hm.\n")


def test_what_is_piped_is_the_answer_to_the_letter_and_a_line_break(capsys: pytest.CaptureFixture[str]) -> None:
    for end in ("", "\n"):
        printed(ContentDelta("a\x1b[2J\x07\tb"), ContentDelta(end), END)
        assert capsys.readouterr().out == "a\x1b[2J\x07\tb\n"
    printed(ContentDelta(""), END)
    assert capsys.readouterr().out == ""


def test_on_a_terminal_nothing_moves_the_cursor_and_the_answer_ends_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    printed(ContentDelta("a\x1b[2J\x07\x9b\tb"), END)
    assert terminal.getvalue() == "a[2J\tb\n"
    monkeypatch.setattr(sys, "stdout", silent := Terminal())
    printed(END)
    assert silent.getvalue() == ""


def test_a_system_message_comes_first() -> None:
    user = {"role": "user", "content": "Hi"}
    assert messages_of("Hi", None) == [user]
    assert messages_of("Hi", "") == [{"role": "system", "content": ""}, user]


def test_a_form_is_a_schema_of_a_file_or_an_expression(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    assert form_of(None, None) is None
    assert form_of(None, "a+") == Guide.regex("a+", "--regex")
    for schema in ({"enum": [1]}, True):
        path.write_text(json.dumps(schema))
        assert form_of(path, None) == Guide.json_schema(schema, "--json-schema")
    for text, message in (("{", "is not JSON"), ("[1]", "is not a JSON schema"), ("[" * 100_000, "is not JSON")):
        path.write_text(text)
        with pytest.raises(CommandError, match=message):
            form_of(path, None)


def test_a_form_holds_after_thoughts_that_the_template_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWONNX_SPIN", "0")
    template = counting_model.CHAT_TEMPLATE + "{{ '<think>\\n' }}"
    after = counting_model.ASSISTANT_HEADER + "<think>\n"
    script = "Free thoughts.\n</think>\n\nyes and more"
    folder = counting_model.make(tmp_path / "a", script=script, script_after=after, chat_template=template).folder
    generate(folder, chat="Hi", regex="yes|no", threads=1)
    assert capsys.readouterr() == ("yes\n", "Free thoughts.\n\n")


@pytest.mark.parametrize(
    "options", [{"regex": "y{40}"}, {"json_schema": {"type": "string", "minLength": 40, "maxLength": 40}}]
)
def test_a_form_that_is_cut_off_is_told_and_is_a_failure(
    counting_folder: Path, tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    if "json_schema" in options:
        (tmp_path / "schema.json").write_text(json.dumps(options["json_schema"]))
        options = {"json_schema": tmp_path / "schema.json"}
    with pytest.raises(typer.Exit) as ended:
        generate(counting_folder, chat="Hi", max_tokens=8, threads=1, **options)
    assert ended.value.exit_code == 3
    assert "cut off after 8 tokens and does not have its form: raise --max-tokens" in capsys.readouterr().err
    generate(counting_folder, chat="Hi", max_tokens=64, threads=1, **options)


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_message_is_refused(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match="--chat is empty"):
        generate(tmp_path, chat=text)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    with pytest.raises(CommandError, match="--chat is empty"):
        generate(tmp_path, chat="-")


def test_statistics_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_stats(output("", 1, reason=FinishReason.LENGTH, generated=5), 0.5, 2.0)
    line = (
        "7 prompt tokens, first token after 0.50 s (14 tokens/s), then 2.0 tokens/s; 5 tokens, finish reason length\n"
    )
    assert capsys.readouterr() == ("", line)
    print_stats(output("", 1, reason=FinishReason.STOP), 0.5, 0.0)
    line = "7 prompt tokens, first token after 0.50 s (14 tokens/s); 1 tokens, finish reason stop\n"
    assert capsys.readouterr() == ("", line)
