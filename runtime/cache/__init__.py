"""The states of running sequences, and copies of them: rows, snapshots of prefixes, capsules, baked prefixes.

Read rows (integers), buffers (the interface to the memory of rows), host_buffers with pages (host memory), hybrid_cache
(accounting of rows), prefix_cache, then capsule and baked_prefixes. A device's memory becomes a module next to
host_buffers. This folder does not know requests, text or scheduling; only host_buffers slices a state.
"""
