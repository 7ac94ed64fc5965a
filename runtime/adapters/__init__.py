"""LoRA adapters: what their files say, and the slots from which a running model reads them.

Read adapter_config and tensor_names for the files, which the exporter reads too; adapter_folder for one adapter of a
running model; slots for all of them.
"""
