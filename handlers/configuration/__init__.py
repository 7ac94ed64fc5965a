"""Where settings come from besides the command line: the environment's variables, and configuration files."""
