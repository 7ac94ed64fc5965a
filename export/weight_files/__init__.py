"""The weight stage: lays out files by sizes alone, and fills them on all processors, in bounded memory, resumably.

Read weight_item, layout, external_data, weight_slices, lanes, memory_budget, weight_stage; then journal, resume,
unfinished, fingerprint for interrupted exports. Nothing here knows graphs or targets.
"""
