"""The same ids and the same prompts as transformers, wherever a checkpoint keeps its tokens and its chat template."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qwonnx.export.checkpoint.text_files import check_text_files, load_tokenizer
from qwonnx.export.errors import CheckpointError
from tests.checkpoints import SPECIAL_TOKENS, write_tiny
from tests.export.checkpoint import text_layouts
from tests.export.checkpoint.layout_edits import Layout, changed, together, without, write

ROWS = 1280
TEXTS = (
    "Hello! 毕老师！1 + 1 = 2 ĠÑĤÐ²ÑĬÑĢ",
    "नदी के किनारे एक पुराना पुल है\r\n\r\n  x",
    "<|im_start|>user\nhi <think> x </think><tool_call>a</tool_call> <|im_end|>\n",
    "".join(SPECIAL_TOKENS),
    " ".join(SPECIAL_TOKENS),
    "e\u0301 \u1e9b\u0323 it's 12345",
)
MESSAGES = [
    {"role": "system", "content": " You are terse. "},
    {"role": "user", "content": "What is <b>this</b>?"},
    {"role": "assistant", "content": "A\nline"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint without its weights, to be changed."""
    names = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny", ignore=names))


def same_ids(folder: Path, reference: Any) -> None:
    ours = load_tokenizer(folder)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == reference.encode(text, add_special_tokens=False), text
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)
    assert ours.added_token_ids == tuple(sorted(reference.added_tokens_decoder))


@pytest.mark.parametrize("layout", text_layouts.TOKENIZERS, ids=lambda layout: layout.name)
def test_ids_are_those_of_the_fast_tokenizer(folder: Path, layout: Layout) -> None:
    layout.edit(folder)
    same_ids(folder, PreTrainedTokenizerFast.from_pretrained(folder))


@pytest.mark.parametrize("layout", text_layouts.TOKENIZERS, ids=lambda layout: layout.name)
def test_ids_are_those_of_auto_tokenizer_unless_a_note_says_that_they_are_not(folder: Path, layout: Layout) -> None:
    layout.edit(folder)
    notes = check_text_files(folder, ROWS).files.notes
    ours, auto = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    differs = any(ours.encode(text) != auto.encode(text, add_special_tokens=False) for text in TEXTS)
    assert differs == any("AutoTokenizer" in note for note in notes)


def test_tokens_in_the_middle_that_only_the_whole_list_has_get_the_ids_of_auto_tokenizer(folder: Path) -> None:
    text_layouts.OTHER_TOKENIZERS[0].edit(folder)
    same_ids(folder, AutoTokenizer.from_pretrained(folder))


def test_a_vocabulary_and_merges_are_the_tokenizer_that_they_were_taken_from(folder: Path) -> None:
    before = PreTrainedTokenizerFast.from_pretrained(folder)
    text_layouts.OTHER_TOKENIZERS[1].edit(folder)
    same_ids(folder, before)
    assert Library.from_str(check_text_files(folder, ROWS).files.contents["tokenizer.json"].decode()) is not None


def test_a_special_name_makes_a_listed_token_special(folder: Path) -> None:
    together(
        text_layouts.listed(special=False),
        changed(
            "tokenizer_config.json",
            eos_token="<|im_end|>",
            pad_token={"__type": "AddedToken", "content": "<|endoftext|>"},
        ),
    )(folder)
    same_ids(folder, PreTrainedTokenizerFast.from_pretrained(folder))


def test_a_tokenizer_that_needs_nothing_is_copied_byte_for_byte(folder: Path) -> None:
    text_layouts.listed()(folder)
    files = check_text_files(folder, ROWS).files
    assert files.contents["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()
    assert files.contents["chat_template.jinja"] == (folder / "chat_template.jinja").read_bytes()
    assert files.notes == ()


@pytest.mark.parametrize("added", [None, ...])
def test_a_tokenizer_json_without_a_list_takes_that_of_the_configuration(folder: Path, added: Any) -> None:
    before = PreTrainedTokenizerFast.from_pretrained(folder)
    together(text_layouts.listed(), changed("tokenizer.json", added_tokens=added))(folder)
    same_ids(folder, before)


@pytest.mark.parametrize(
    "entry", [{}, {"content": ""}, {"content": 7}, {"content": "x", "special": "yes"}, 7, {"content": "x" * 10**6}]
)
@pytest.mark.parametrize("number", ["1249", "-1", "x", "1" * 400])
def test_a_malformed_entry_is_refused_in_one_line(folder: Path, entry: Any, number: str) -> None:
    changed("tokenizer_config.json", added_tokens_decoder={number: entry})(folder)
    if number == "1249" and entry == {"content": "x" * 10**6}:
        assert load_tokenizer(folder).encode("x" * 10**6) == [1249]
        return
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


# Chat templates


def rendered(folder: Path, tools: list[Any] | None, **variables: Any) -> str:
    template = check_text_files(folder, ROWS).chat_template
    assert template is not None
    return template.render(MESSAGES, tools=tools, add_generation_prompt=False, **variables)


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["without tools", "with tools"])
@pytest.mark.parametrize("layout", text_layouts.TEMPLATES, ids=lambda layout: layout.name)
def test_prompts_are_those_of_auto_tokenizer(folder: Path, layout: Layout, tools: list[Any] | None) -> None:
    layout.edit(folder)
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(MESSAGES, tools=tools, tokenize=False)
    assert rendered(folder, tools) == theirs


def test_a_request_may_replace_a_special_token_of_a_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ eos_token }}|{% for m in messages %}{{ eos_token }}{% endfor %}")
    assert rendered(folder, None, eos_token="E") == "E|EEE"
    assert rendered(folder, None) == "<|im_end|>|" + 3 * "<|im_end|>"


@pytest.mark.parametrize("token", ["{{ 7 }}", "'\"\\", "%}{% raw %}", "a\nb", "é🌍\u2028", "#}{#"])
def test_any_text_can_be_a_special_token_of_a_template(folder: Path, token: str) -> None:
    changed("tokenizer_config.json", cls_token=token)(folder)
    (folder / "chat_template.jinja").write_text("\n  {{ cls_token }}\n")
    assert rendered(folder, None) == f"\n  {token}"


@pytest.mark.parametrize("ending", ["", "\n", "\n\n", "  ", "{# #}\n", "{% if true %}{% endif %}\n", "\r\n"])
@pytest.mark.parametrize("beginning", ["", "\n", "   ", "\n  {% if true %}x{% endif %}", "{%- if true %}x{% endif %}"])
def test_a_choice_of_templates_changes_no_blank_of_them(folder: Path, beginning: str, ending: str) -> None:
    templates = {"default": f"{beginning}without{ending}", "tool_use": f"{beginning}with{ending}"}
    text_layouts.template(text_layouts.named(**templates))(folder)
    auto = AutoTokenizer.from_pretrained(folder)
    for tools in (None, TOOLS):
        assert rendered(folder, tools) == auto.apply_chat_template(MESSAGES, tools=tools, tokenize=False)


def test_tools_alone_have_a_template_and_other_requests_an_error_as_in_transformers(folder: Path) -> None:
    text_layouts.template(text_layouts.named(tool_use=text_layouts.WITH_TOOLS))(folder)
    assert "weather" in rendered(folder, TOOLS)
    with pytest.raises(Exception, match="none for requests without tools"):
        rendered(folder, None)
    with pytest.raises(ValueError, match="no default"):
        AutoTokenizer.from_pretrained(folder).apply_chat_template(MESSAGES, tokenize=False)


@pytest.mark.parametrize("layout", text_layouts.OTHER_TEMPLATES[:2], ids=lambda layout: layout.name)
def test_a_template_of_processors_is_read_where_there_is_no_other(folder: Path, layout: Layout) -> None:
    layout.edit(folder)
    auto = AutoTokenizer.from_pretrained(folder)
    theirs = auto.apply_chat_template(MESSAGES, chat_template=text_layouts.PLAIN, tokenize=False)
    assert rendered(folder, None) == theirs


def test_names_of_older_versions_are_read_without_a_list(folder: Path) -> None:
    changed("tokenizer_config.json", eos_token=...)(folder)
    write(folder / "special_tokens_map.json", {"eos_token": {"content": "<|im_end|>", "lstrip": False}})
    (folder / "chat_template.jinja").write_text("{{ eos_token }}")
    assert rendered(folder, None) == "<|im_end|>"
    without("special_tokens_map.json")(folder)
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(MESSAGES, tokenize=False)
    assert rendered(folder, None) == theirs == "<|endoftext|>"


def test_a_tokenizer_that_transformers_has_saved_is_the_same(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny", vision=False)
    saved = tmp_path / "saved"
    AutoTokenizer.from_pretrained(folder).save_pretrained(saved)
    same_ids(saved, PreTrainedTokenizerFast.from_pretrained(folder))
