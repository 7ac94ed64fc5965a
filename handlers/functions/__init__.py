"""Platforms: one file for each, over the same application.

Read platform, which finds a platform of `qwonnx serve` by its variables; then extensions, and sagemaker, vertex,
kserve, cloud_run, azure_custom_handler and cloudevents, which add routes. google_functions, azure_functions, aws_lambda
and runpod are called by a platform's own server.

A platform uses create_app, host_from_environment and error_response of app, and http's InvocationDeadline; other
modules need not know it. This folder does not know APIs or the engine.

AWS Lambda, in reading order: lambda_events.py (events and answers), exchange.py (one request without a connection),
lambda_instance.py (the application), aws_lambda.py (with Amazon's client), runtime_api.py and lambda_runtime.py (with
ours).
"""
