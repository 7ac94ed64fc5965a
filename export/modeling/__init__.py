"""The model as small torch modules, and the graph that results from a trace of them. No weights are loaded.

Read layers, rotary, attention, delta_net, feed_forward, decoder; then cache_spec (the states), trace and weight_fit.
Nothing here knows targets or quantisation.
"""
