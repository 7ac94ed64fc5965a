"""GGUF files of llama.cpp's conversion of Qwen 3.5, read as the checkpoint that was converted.

Read header for the file, blocks for how values are stored; then published_tensors, config_document and text, which undo
the conversion: tensors by their published names, config.json, tokenizer.json and the chat template. files says which
files of a folder are one model.
"""
