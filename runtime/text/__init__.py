"""Text and tokens: the tokenizer, the chat template, and the parts of an answer's text.

Read tokenizer, chat_template, chat_prompt for the way in; detokenizer, stop_strings, output_parser, tool_arguments for
the way out. This folder does not know models, states or any API.
"""
