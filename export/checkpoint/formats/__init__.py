"""How tensors are stored: as floats, and as the codes of quantisers. config.json names the format of each."""
