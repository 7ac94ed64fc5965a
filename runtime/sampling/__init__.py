"""The choice of the next token: parameters, sampling, and guides that mask tokens.

Read parameter (what is declared of each), params, sampler, then guide, grammar (with grammar_check, a separate process)
and tool_grammar. This folder does not know sequences' states or HTTP.
"""
