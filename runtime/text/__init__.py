"""Text and tokens: the tokenizer, the chat template, and the parts of an answer's text.

The way in: tokenizer (with added_tokens and token_bounds) over a vocabulary, which is the library's
(library_vocabulary) or mapped (vocabulary_file, mapped_vocabulary, pieces, piece_merging, native_merging), as
artifact_tokenizer chooses; chat_template (template_text, template_environment, cut_json), chat_prompt. The way out:
detokenizer, stop_strings, output_parser (answer_events), function_reader, call_values, call_tags, tool_arguments,
schema_types. This folder does not know models, states or any API.
"""
