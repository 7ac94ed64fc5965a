"""OpenAI's API: requests checked and translated, answers in its objects.

Read chat_protocol, chat_request, answer_guide, engine_request for the way in; chat_objects and chat_completions for the
way out; models. No other API's words, nothing of the command line.
"""
