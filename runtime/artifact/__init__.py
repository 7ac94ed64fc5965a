"""The contract between the exporter and the runtime: what an artifact's folder holds, and how it is read and checked.

Read file_names, manifest, folder; strict_json parses what strangers wrote. Standard library only: nothing here knows
tensors, ONNX Runtime or any other folder of the project.
"""
