"""Continuous batching: requests in, deltas of their answers out, one thread that owns the model.

Read request, generation, admission, mailbox, prefix_reuse, metrics, then engine, whose step() is the core loop. This
folder does not know HTTP, chats or any API.
"""
