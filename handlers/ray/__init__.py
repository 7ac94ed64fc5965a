"""Ray: replicas by Ray Serve (app), offline batches by Ray Data (answers), and stages as actors (stages).

Ray places processes and starts them again. Each has an engine of its own; nothing here changes what an engine does.
answers needs no Ray to be imported; the others do.
"""
