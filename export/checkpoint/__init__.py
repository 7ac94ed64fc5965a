"""Reads a checkpoint from a disk, a hub or a URL, and trusts nothing in it: config.json, tensors, text files.

Read location, safetensors_header and checkpoint for the files; config_fields and config for config.json; weight_source
for the weights by name. formats/ knows how each weight is stored, remote/ how files that lie elsewhere are read.
Nothing here knows graphs or how an artifact stores weights.
"""
