"""Models on this machine's disk, by name: the folder ~/.cache/qwonnx, and what is pulled into it.

Read names, stored_models (which finds, lists and removes), fitting (which recipe suits a machine), pull (which
exports), store (all of it, for programs). Only fitting and pull use the exporter, and a server imports neither; for a
path, it imports artifact_path alone.
"""
