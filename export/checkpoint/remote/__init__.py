"""Checkpoints that lie elsewhere: a repository of the hub, which is downloaded, or a folder at a URL, read in ranges.

Read addresses for the names; retries and store for a place that gives names, sizes and ranges of bytes (http_store,
fsspec_store, hub_store); range_file for reads of tensors; remote_folder for the whole. hub_client and hub_download are
for the hub's cache. Nothing here knows tensors or models.

A listing is untrusted: a name of it becomes a path only if it is a plain one, and sizes are bounded before anything is
read. No message shows a password, a token or a signature.
"""
