"""Interfaces to the runtime: HTTP endpoints, serverless functions, the command line.

Read app, which lists the APIs; then settings, model_host and server; http for code without chats, chat for code that
all APIs share, openai for one API, functions for platforms with their own server, cli for the commands. Only cli knows
qwonnx.export.
"""
