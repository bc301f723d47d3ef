"""Files in which trainers keep tensors, read without running anything that they hold.

closed_pickle reads a pickle's opcodes by a closed list; the files beside it are the containers
that hide one (torch's zip, torch's distributed checkpoints, OLMo's safetensors keys), and plain
safetensors. Tensors come as places in files.
"""
