"""OpenAI's Responses API, without stored responses: each request carries its whole conversation.

Read api, which lists the routes; protocol, items, tools, conversation, request for the way in; objects, events, output
and writer for the way out; create and input_tokens, the endpoints; absent, what is refused because nothing is stored.
This folder shares the error format of openai/; chat/ generates the answers.
"""
