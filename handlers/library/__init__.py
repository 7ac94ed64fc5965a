"""The model as a Python object: LLM and AsyncLLM, which `from qwonnx import LLM` gives (package/__init__.py).

Read answer and stream (what callers get), functions and schemas (Python's types as JSON schemas), request (what they
ask for), opening (a path or a name becomes an engine), async_llm, then llm, which runs the former in a thread. All
answers come from handlers/chat/, as over HTTP. This folder knows no HTTP, and of the exporter only the store of models.
"""
