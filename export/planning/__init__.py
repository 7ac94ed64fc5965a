"""Predicts the result of an export: sizes, memory, speed, and the machines that it fits.

Read source, decoder_weights, stored_model, weight_layout, artifact_size, states, resident_memory, traffic, then plan,
fit and report; exact_artifact traces the graph instead of an estimate. Nothing here reads a tensor.
"""
