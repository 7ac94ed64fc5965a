"""OpenAI's API: its requests translated to neutral ones, answers and errors in its objects.

Read api, which lists the routes; chat_protocol, chat_request, answer_guide, engine_request for the way in;
chat_objects, errors and chat_completions for the way out; models. No other API's words, nothing of the command line,
and no generation: that is chat's.
"""
