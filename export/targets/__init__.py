"""The targets of a lowering: one file for each, with the record of what it offers.

Read target (the record), register and lowered_graph, then portable, cpu, cpu_lowering and cpu_attention. Nothing here
knows checkpoints or files.
"""
