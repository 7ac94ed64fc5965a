"""Reads a checkpoint from a disk or hub, and trusts nothing in it: config.json, tensors in every format, text files.

Read location, safetensors_header and checkpoint for the files; config_fields and config for config.json; weight_source
for the weights by name, and formats/ for how each is stored. Nothing here knows graphs or how an
artifact stores weights.
"""
