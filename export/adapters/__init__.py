"""LoRA adapters as peft saves them, merged into a checkpoint's weights while these are read.

Read adapter_config for what may be in an adapter, tensor_names and adapter for its tensors, factors and changes for the
arithmetic, adapted_weights for the checkpoint with its adapters, and adapted_checkpoint for what an export opens.
Nothing here knows how weights are transformed, quantised or written.
"""
