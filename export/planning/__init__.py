"""What an export will give, before it is made: sizes, memory, speed to expect, machines it fits.

Read source, decoder_weights, stored_model, weight_layout, artifact_size, states, resident_memory, traffic, then plan,
fit and report; exact_artifact traces instead of foreseeing. Nothing here reads a tensor.
"""
