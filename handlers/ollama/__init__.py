"""Ollama's API, for tools that know no other: it translates requests to neutral ones, and answers to its objects.

Read api, which lists the routes; protocol and requests for the way in; objects, writer and errors for the way out;
endpoints. This folder does not know other APIs; chat/ generates the answers.
"""
