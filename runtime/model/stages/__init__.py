"""A model cut into stages: the first one runs in the engine's process, the others in processes of their own.

Read address, wire (frames and the handshake), operations (rows, as numbers), link (a connection of the engine to one
stage), joined (the artifact and the session that an engine sees), staged_buffers (rows that lie in all processes), and
stage_server (the other end). Nothing here knows requests, or which sequence a row has.
"""
