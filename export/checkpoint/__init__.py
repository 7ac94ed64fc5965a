"""Reads a checkpoint from a disk or hub, and trusts nothing in it: config.json, tensors in every format, text files.

Read location, safetensors_header and checkpoint for the files; config_fields, source_quantization and config for
config.json; float8, gptq, stored_weights and weight_source for the weights by name. Nothing here knows graphs or how an
artifact stores weights.
"""
