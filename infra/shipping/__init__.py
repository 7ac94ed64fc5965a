"""What is shipped: locks, the tree of files that a server needs, its sizes, and its licences.

Read lock_file.py, locks.py, image_root.py, tree_size.py, licences.py, sbom.py; then, for a release, distributions.py,
interpreters.py, clean_environment.py, release_check.py. Nothing here is installed with qwonnx.
"""
