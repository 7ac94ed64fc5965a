"""The contract between exporter and runtime: the files of an artifact, and how to read and check them.

Read file_names, manifest, folder, and compiled (models for one kind of GPU); strict_json parses untrusted JSON.
Standard library only: this folder does not know tensors, ONNX Runtime or any other folder of the project.
"""
