"""What a graph is lowered to: one file a target, each a record of what it offers.

Read target (the record and the register), lowered_graph, then portable, cpu, cpu_attention. Nothing here knows
checkpoints or files.
"""
