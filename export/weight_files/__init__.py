"""The weight stage: files laid out by sizes alone, filled by all processors in bounded memory, resumable.

Read weight_item, layout, external_data, weight_slices, lanes, memory_budget, weight_stage; then journal, resume,
unfinished, fingerprint for exports that were interrupted. Nothing here knows graphs or targets.
"""
