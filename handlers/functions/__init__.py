"""Platforms that call a function instead of a server: one file a platform over the same application.

A platform uses create_app, host_from_environment and error_response of app, and http's InvocationDeadline; nothing else
has to know of it. Nothing here knows an API or the engine.
"""
