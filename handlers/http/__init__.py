"""HTTP without any API's words: what an API is, bodies, streams of events, deadlines, keys, health, the access log.

Read api, which says how an error finds the API that renders it; each other file is one middleware or one helper.
Nothing here knows chats or the engine's requests.
"""
