"""A tokenizer in the form of Qwen 3.5's: byte-level BPE over NFC text, with its pre-tokenizer and its special tokens.

Trained on corpus.txt, which was written for this. Training counts and breaks ties by id, so it gives the same
tokenizer.json wherever it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

# Qwen 3.5's: unlike Qwen 3's, combining marks (\p{M}) stay with the letters they belong to.
PRETOKENIZER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# In the order of their ids, which follow the ordinary tokens. False: an added token that stays in decoded text, because
# a parser of reasoning or tool calls reads it; it is not a part of the conversation's frame.
SPECIAL_TOKENS: Mapping[str, bool] = {
    "<|endoftext|>": True,
    "<|im_start|>": True,
    "<|im_end|>": True,
    "<|object_ref_start|>": True,
    "<|object_ref_end|>": True,
    "<|box_start|>": True,
    "<|box_end|>": True,
    "<|quad_start|>": True,
    "<|quad_end|>": True,
    "<|vision_start|>": True,
    "<|vision_end|>": True,
    "<|vision_pad|>": True,
    "<|image_pad|>": True,
    "<|video_pad|>": True,
    "<tool_call>": False,
    "</tool_call>": False,
    "<|fim_prefix|>": False,
    "<|fim_middle|>": False,
    "<|fim_suffix|>": False,
    "<|fim_pad|>": False,
    "<|repo_name|>": False,
    "<|file_sep|>": False,
    "<tool_response>": False,
    "</tool_response>": False,
    "<think>": False,
    "</think>": False,
    "<|audio_start|>": True,
    "<|audio_end|>": True,
    "<tts_pad>": True,
    "<tts_text_bos>": True,
    "<tts_text_eod>": True,
    "<tts_text_bos_single>": True,
    "<|audio_pad|>": True,
}

NUM_BASE_TOKENS = 1216  # 256 bytes and 960 merges; with the special tokens 31 fewer than the tiny model's vocab_size
NUM_TOKENS = NUM_BASE_TOKENS + len(SPECIAL_TOKENS)


def qwen_tokenizer(model: models.BPE) -> Tokenizer:
    """A BPE model in Qwen 3.5's frame: normaliser, pre-tokenizer, decoder. Special tokens are not added yet."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZER_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def add_special_tokens(tokenizer: Tokenizer) -> None:
    """Append the special tokens, in order, each matched literally and never normalised."""
    for content, special in SPECIAL_TOKENS.items():
        tokenizer.add_tokens([AddedToken(content, special=special, normalized=False)])


@cache
def build_tokenizer() -> str:
    """The text of tokenizer.json."""
    tokenizer = qwen_tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_BASE_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=1,  # the text is short: every word in it may be learnt
    )
    corpus = Path(__file__).with_name("corpus.txt").read_text(encoding="utf-8")
    # Whole paragraphs: newlines within one are tokens to learn too.
    tokenizer.train_from_iterator([corpus], trainer)
    assert tokenizer.get_vocab_size() == NUM_BASE_TOKENS, tokenizer.get_vocab_size()
    add_special_tokens(tokenizer)
    text: str = tokenizer.to_str(pretty=True)
    return text + "\n"


@cache
def token_ids() -> dict[str, int]:
    """Ids of the special tokens."""
    return {content: NUM_BASE_TOKENS + index for index, content in enumerate(SPECIAL_TOKENS)}


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json; the class is the generic one, which takes everything from tokenizer.json."""
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 262144,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "TokenizersBackend",
        "unk_token": None,
    }
