"""OpenAI's API: it translates requests to neutral ones, and answers and errors to its objects.

Read api, which lists the routes; chat_protocol, chat_request, answer_guide, engine_request for the way in;
chat_objects, errors and chat_completions for the way out; models. This folder does not know other APIs or the command
line; chat/ generates the answers.
"""
