"""Real clients of other languages against a live server. Installed by hand, and run by `make soak`."""
