"""Anthropic's API: it translates requests to neutral ones, and answers and errors to its objects.

Read api, which lists the routes; protocol, message_request for the way in; message_objects, message_writer, errors for
the way out; messages, the endpoints. This folder does not know other APIs; chat/ generates the answers.
"""
