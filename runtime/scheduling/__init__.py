"""Which sequences a step computes: pure accounting of tokens, rows and bytes.

Read sequence, row_budget, scheduler. Integers only: nothing here knows tensors, text or ONNX Runtime, or loads numpy.
"""
