"""The states of running sequences, and copies of them: rows, snapshots of prefixes, capsules, baked prefixes.

Read rows (integers), buffers (the seam to the memory where rows live), host_buffers with pages (the host's memory),
hybrid_cache (the account of rows), prefix_cache, then capsule and baked_prefixes. A device's memory becomes a module
beside host_buffers. Nothing here knows requests, text or scheduling; nothing but host_buffers slices a state.
"""
