"""Layouts of tokenizers and chat templates; a new one is a new line here and a row in docs/checkpoints.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.export.checkpoint.layout_edits import Edit, Layout, changed, file, read, together, without, write

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
Json = dict[str, Any]

PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\n"
WITH_TOOLS = (
    "\n  {% for t in tools %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}  \n"
)


def _added(folder: Path) -> list[Json]:
    found: list[Json] = read(folder / TOKENIZER)["added_tokens"]
    return found


def _decoder(tokens: list[Json], **flags: Any) -> Json:
    return {str(one["id"]): {k: v for k, v in one.items() if k != "id"} | flags for one in tokens}


def listed(is_listed: Callable[[Json], bool] = lambda token: True, **flags: Any) -> Edit:
    """Put added tokens into tokenizer_config.json."""

    def edit(folder: Path) -> None:
        tokens = [token for token in _added(folder) if is_listed(token)]
        changed(CONFIG, added_tokens_decoder=_decoder(tokens, **flags))(folder)

    return edit


def lacking(is_lost: Callable[[Json], bool]) -> Edit:
    """Take added tokens out of tokenizer.json."""
    return lambda folder: changed(TOKENIZER, added_tokens=[t for t in _added(folder) if not is_lost(t)])(folder)


def _thoughts_and_tools(token: Json) -> bool:
    return "think" in token["content"] or "tool" in token["content"]


def _last(count: int) -> Callable[[Json], bool]:
    return lambda token: bool(token["id"] >= 1216 + 33 - count)


def _vocabulary(folder: Path) -> None:
    model = read(folder / TOKENIZER)["model"]
    write(folder / "vocab.json", model["vocab"])
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    (folder / TOKENIZER).unlink()


def _of_qwen_2(folder: Path) -> None:
    """The pre-tokenizer of Qwen 2 and 3, which separates combining marks from letters."""
    tokenizer = read(folder / TOKENIZER)
    pattern = tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    pattern["Regex"] = pattern["Regex"].replace(r"\p{M}", "")
    write(folder / TOKENIZER, tokenizer)


def template(value: Any) -> Edit:
    """The template in tokenizer_config.json."""
    return together(without(TEMPLATE), changed(CONFIG, chat_template=value))


def named(**templates: str) -> list[Json]:
    return [{"name": name, "template": text} for name, text in templates.items()]


# Read as PreTrainedTokenizerFast reads them.
TOKENIZERS = (
    Layout("every added token in tokenizer.json and in tokenizer_config.json", listed()),
    Layout("the last added tokens only in tokenizer_config.json", together(listed(_last(9)), lacking(_last(9)))),
    Layout("all added tokens only in tokenizer_config.json", together(listed(), lacking(lambda token: True))),
    Layout("flags of added tokens that differ in tokenizer_config.json", listed(lstrip=True)),
    Layout(
        "special tokens that only a list names (extra_special_tokens)",
        together(lacking(_last(2)), changed(CONFIG, extra_special_tokens=["<tts_text_bos_single>", "<|audio_pad|>"])),
    ),
    Layout(
        "special tokens that only names have (audio_token)",
        together(lacking(_last(1)), changed(CONFIG, audio_token="<|audio_pad|>")),
    ),
    Layout(
        "added_tokens.json, of older versions",
        together(
            lacking(_last(2)), file("added_tokens.json", '{"<tts_text_bos_single>": 1247, "<|audio_pad|>": 1248}')
        ),
    ),
    Layout("a pre-tokenizer that is not Qwen 3.5's", _of_qwen_2),
    Layout("no tokenizer_config.json", without(CONFIG)),
)
# transformers reads these otherwise: see the tests.
OTHER_TOKENIZERS = (
    Layout(
        "some added tokens missing in tokenizer.json, and all in tokenizer_config.json",
        together(listed(), lacking(_thoughts_and_tools)),
    ),
    Layout("vocab.json and merges.txt, without tokenizer.json", together(listed(), _vocabulary)),
)
# Rendered as AutoTokenizer renders them.
TEMPLATES = (
    Layout("a template in chat_template.jinja", file(TEMPLATE, PLAIN)),
    Layout("a template in tokenizer_config.json", template(PLAIN)),
    Layout(
        "named templates in tokenizer_config.json, with default and tool_use",
        template(named(default=PLAIN, tool_use=WITH_TOOLS)),
    ),
    Layout("named templates in tokenizer_config.json, with others", template(named(rag="x", default=PLAIN))),
    Layout("a template in both files", together(template("wrong"), file(TEMPLATE, PLAIN))),
    Layout(
        "a template in additional_chat_templates",
        together(file(TEMPLATE, PLAIN), file("additional_chat_templates/tool_use.jinja", WITH_TOOLS)),
    ),
    Layout(
        "a template with special tokens by name (eos_token)",
        file(
            TEMPLATE,
            "{% macro end() %}{{ eos_token }}{% endmacro %}{{ bos_token }}{% for m in messages %}{{ m.content }}"
            "{{ end() }}"
            "{{ pad_token }}{% endfor %}",
        ),
    ),
    Layout(
        "a training template ({% generation %})",
        file(
            TEMPLATE,
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{% generation %}\n{{ m.content }}<|im_end|>"
            "{% endgeneration %}\n"
            "{% endfor %}{%- generation -%} x {%- endgeneration -%}",
        ),
    ),
)
OTHER_TEMPLATES = (
    Layout(
        "a template in chat_template.json",
        together(without(TEMPLATE), lambda folder: write(folder / "chat_template.json", {"chat_template": PLAIN})),
    ),
    Layout(
        "a template in processor_config.json",
        together(without(TEMPLATE), lambda folder: write(folder / "processor_config.json", {"chat_template": PLAIN})),
    ),
    Layout(
        "another template in chat_template.json",
        lambda folder: write(folder / "chat_template.json", {"chat_template": PLAIN}),
    ),
    Layout("named templates without default and tool_use", template(named(rag=PLAIN))),
    Layout(
        "additional_chat_templates without a default, and a template in tokenizer_config.json",
        together(template(PLAIN), file("additional_chat_templates/rag.jinja", WITH_TOOLS)),
    ),
    Layout("no template", without(TEMPLATE)),
)
ACCEPTED = (*TOKENIZERS, *OTHER_TOKENIZERS, *TEMPLATES, *OTHER_TEMPLATES)

REFUSED = (
    Layout(
        "added tokens whose ids contradict the order of transformers",
        together(listed(_thoughts_and_tools), lacking(_thoughts_and_tools)),
    ),
    Layout(
        "an added token with two ids",
        together(
            listed(),
            lambda folder: changed(
                CONFIG,
                added_tokens_decoder=read(folder / CONFIG)["added_tokens_decoder"] | {"1300": {"content": "<think>"}},
            )(folder),
        ),
    ),
    Layout("no tokenizer", without(TOKENIZER)),
    Layout(
        "a tokenizer.json that is a pointer of Git LFS", file(TOKENIZER, "version https://git-lfs.github.com/spec/v1")
    ),
    Layout("tokenizer.model of SentencePiece or tiktoken", together(without(TOKENIZER), file("tokenizer.model"))),
    Layout("vocab.json and merges.txt without a list of special tokens", _vocabulary),
    Layout(
        "a tokenizer of another kind", lambda folder: changed(TOKENIZER, model={"type": "Unigram", "vocab": []})(folder)
    ),
    Layout("a malformed tokenizer_config.json", file(CONFIG, "{")),
    Layout("a malformed template in tokenizer_config.json", template("{% for m in messages %}")),
    Layout("a chat_template that is neither text nor list", template(7)),
)
