"""Platforms that call a function instead of a server: one file a platform over the same application.

Nothing here knows an API or the engine.
"""
