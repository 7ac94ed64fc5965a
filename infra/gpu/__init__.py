"""Work for NVIDIA GPUs that is not part of the package: tables, checks on a device."""
