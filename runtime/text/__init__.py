"""Between text and tokens: the tokenizer, the chat template, and what an answer's text is made of.

Read tokenizer, chat_template, chat_prompt for the way in; detokenizer, stop_strings, output_parser, tool_arguments for
the way out. Nothing here knows models, states or any API's words.
"""
