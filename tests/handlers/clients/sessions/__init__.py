"""Sessions of clients with a server of the miniature. Each runs in an interpreter that has its client.

steps.py records what passed, questions.json is what the miniature knows, questions.py has it for Python. Each other
module is one client's session: `python -m tests.handlers.clients.sessions.NAME URL`. javascript/ has JavaScript's.
"""
