"""The native operators under AddressSanitizer and UndefinedBehaviorSanitizer, fed with mutated tensors and attributes.

Read `__main__.py`, which builds and runs, then `driver.cpp`, which stands for ONNX Runtime.
"""
