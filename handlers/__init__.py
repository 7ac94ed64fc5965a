"""The outside world's way to the runtime: HTTP endpoints, functions, the command line.

Read app, which lists the APIs; settings, model_host and server around it; http for what knows no chat, chat for what
every API shares, openai for one API, functions for platforms that bring their own server, cli for the commands. Only
cli knows qwonnx.export.
"""
