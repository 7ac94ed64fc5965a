"""HTTP, independent of an API: the Api record, bodies, event streams, deadlines, keys, limits, health, logs, metrics.

Read api, which finds the API that renders an error; each other file is one middleware or one helper. This folder does
not know chats or the engine's requests.
"""
