"""Offline work: many requests from files, answered by one engine that is kept full.

Read work, tasks and lines (where requests come from), results (where answers go), then run.
"""
