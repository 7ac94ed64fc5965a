"""How weights, keys and values are stored in fewer bits, and with which scales.

Read recipe, storage_plan, quantize (with quantize_kernel); importance, calibration, calibration_layers for scales that
are learnt from a text; cache_scales; size_table. Nothing here knows files or graphs.
"""
