"""Decides whether an artifact is the model of its checkpoint: layer by layer, in bounded memory, ending in a verdict.

Read verification first, which calls the others in this order: tokenizers, hashes, probe_text, artifact_pass (ONNX
Runtime), reference_layers and layer_errors (transformers), predictions, bounds and verdict. work_folder keeps what is
done, so that it can be continued. Nothing here knows the command line.
"""
