"""Which token comes next: parameters, the draw, and guides that mask tokens an answer may not have.

Read params, sampler, then guide, grammar (with grammar_check, a process of its own) and tool_grammar. Nothing here
knows sequences' states or HTTP.
"""
