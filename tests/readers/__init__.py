"""Sessions of an ML engineer, a platform engineer and a contributor, each on a machine that has nothing installed.

Read machine.py (a Debian of its own), reader.py (its user, with a fresh home and clone), then the sessions.
"""
