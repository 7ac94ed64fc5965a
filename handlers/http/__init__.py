"""HTTP without any API's words: bodies, streams of events, deadlines, keys, health, the access log.

Each file is one middleware or one helper; read them in any order. Nothing here knows chats or the engine's requests.
"""
