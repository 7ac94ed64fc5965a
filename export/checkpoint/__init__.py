"""A checkpoint as it lies on a disk or hub, read without trust: config.json, tensors in every format, text files.

Read location, safetensors_header, checkpoint for the files; config_fields, source_quantization, config for what they
say; float8, gptq, stored_weights, weight_source for the weights by name. Nothing here knows graphs or how an artifact
stores weights.
"""
