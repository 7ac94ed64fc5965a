"""The steps that lowerings share: replace operators, join projections, store weights as codes.

Read rewrite, graph_weights, then merge, siblings, quantized_ops, quantized_cache, constants, functions. Nothing here
knows a target.
"""
