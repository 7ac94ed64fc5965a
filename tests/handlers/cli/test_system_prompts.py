"""Files of system prompts, and the messages while they are baked, in this process."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.system_prompts import bake_prompts, read_prompt
from qwonnx.runtime import baking
from qwonnx.runtime.settings import RuntimeSettings
from qwonnx.runtime.text.chat_prompt import SystemPrompt
from tests.checkpoints.tiny import chat_template
from tests.runtime import counting_model

pytestmark = pytest.mark.fast

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "wind"}}
MESSAGE = {"role": "system", "content": "Be brief."}
SETTINGS = RuntimeSettings(num_threads=1, max_num_batched_tokens=64)


@pytest.mark.parametrize("name", ["system.txt", "system", "system.json.md"])
def test_a_text_is_the_system_message_to_the_last_character(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(' {"messages": []}\n')
    assert read_prompt(path) == SystemPrompt([{"role": "system", "content": ' {"messages": []}\n'}], [])


@pytest.mark.parametrize("name", ["system.json", "SYSTEM.JSON"])
def test_json_is_messages_and_tools(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(json.dumps({"messages": [MESSAGE], "tools": [TOOL]}))
    assert read_prompt(path) == SystemPrompt([MESSAGE], [TOOL])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "the prompt is not valid JSON"),
        (
            '{"messages": [{"role": "user", "content": "Hi"}]}',
            "messages[0] has the role user: give only system messages",
        ),
        ('{"tools": [{"type": "function"}]}', "tools[0].function is missing: send it"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "system.json"
    path.write_text(text)
    with pytest.raises(CommandError, match=f"^{re.escape(f'{path}: {said}')}"):
        read_prompt(path)


def test_every_prompt_has_a_line_that_says_where_it_lies_and_whether_it_was_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = counting_model.make(tmp_path / "artifact", chat_template=chat_template()).folder
    prompts = {tmp_path / "[a].txt": SystemPrompt([MESSAGE], []), tmp_path / "b.json": SystemPrompt([MESSAGE], [TOOL])}
    paths = bake_prompts(folder, prompts, SETTINGS)
    assert sorted(paths) == sorted((folder / "prefixes").iterdir())
    told = capsys.readouterr()
    for source, path in zip(prompts, paths, strict=True):
        assert re.search(rf"^{re.escape(str(source))}: \d+ tokens, .* in {re.escape(str(path))}$", told.out, re.M)
    assert re.fullmatch(r"baked in \d+ s\n", told.err)
    assert bake_prompts(folder, prompts, SETTINGS) == paths
    told = capsys.readouterr()
    assert (told.out.count(", already baked\n"), told.err) == (2, "")


def test_a_folder_that_cannot_be_written_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(baking, "bake", full)
    with pytest.raises(CommandError, match=r"cannot write into .* \(No space left on device\): free some space"):
        bake_prompts(tmp_path, {tmp_path / "a": SystemPrompt([MESSAGE], [])}, SETTINGS)
