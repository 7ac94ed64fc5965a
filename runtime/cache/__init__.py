"""The states of running sequences, and copies of them: rows, snapshots of prefixes, capsules, baked prefixes.

Read pages, hybrid_cache, prefix_cache, then capsule and baked_prefixes. Nothing here knows requests, text or
scheduling.
"""
