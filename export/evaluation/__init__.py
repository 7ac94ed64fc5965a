"""Measures how right an artifact or a checkpoint is: against transformers (verify), and by questions (run).

Read decoder_session (a second path to the graph, without the runtime's caches) and verify; suite, subject,
artifact_subject, checkpoint_subject, judge, run and report for questions. Nothing here knows the command line.
"""
