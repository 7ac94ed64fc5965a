"""The sequences that each step computes: pure accounting of tokens, rows and bytes.

Read sequence, row_budget, scheduler. Integers only: this folder does not know tensors, text or ONNX Runtime, and does
not load numpy.
"""
