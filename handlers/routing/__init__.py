"""`qwonnx route`: one address in front of several servers, which sends a conversation where its states are.

Read affinity (what a request continues), replicas (which one gets it), upstream (how it is asked), then router.
"""
