"""Platforms that call a function instead of a server: one file per platform, over the same application.

A platform uses create_app, host_from_environment and error_response of app, and http's InvocationDeadline; other
modules need not know it. This folder does not know APIs or the engine.
"""
