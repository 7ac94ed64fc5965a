"""A chat from a neutral request to the parts of its answer: what every API, and the command line, shares.

Read request, parts, answer, which says the way between them; outputs and capsule_store under it; endpoint, which puts
it on HTTP. validation, tools and system_prompt are the forms of documents. No API's words or bodies: an API translates.
"""
