"""What every chat API shares: outputs of a running request, capsules of conversations.

Read outputs, then capsule_store. No API's words, bodies or status codes.
"""
