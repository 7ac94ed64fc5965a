"""The miniature: a trained Qwen 3.5 of nine million parameters, what it is trained on, and the program that trains it."""
