"""The miniature: a trained Qwen 3.5 of nine million parameters, its data, and the program that trains it."""
