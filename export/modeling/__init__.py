"""The model as small torch modules of our own, and the graph that tracing them gives. No weight is ever loaded.

Read layers, rotary, attention, delta_net, feed_forward, decoder; then cache_spec (the states), trace and weight_fit.
Nothing here knows targets or quantisation.
"""
