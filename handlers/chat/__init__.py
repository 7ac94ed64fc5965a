"""A chat, from a request independent of an API to the parts of its answer: code that APIs and the command line share.

Read request, parts, answer, which connects them; outputs and capsule_store below it; endpoint, which serves it over
HTTP. validation, tools and system_prompt check documents. This folder does not know an API's names or bodies; each API
translates them.
"""
