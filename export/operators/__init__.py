"""The operators of our own domain, `ai.qwonnx`: routing, gated delta rule, gated attention, quantised products.

Read ops (signatures and shapes), then op_bodies and attention_bodies (definitions in standard ONNX operators).
Nothing here knows models or targets.
"""
