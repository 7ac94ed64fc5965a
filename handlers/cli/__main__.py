"""`python -m qwonnx.handlers.cli`: the `qwonnx` command where no script is installed, as in an image."""

from qwonnx.handlers.cli.main import main

if __name__ == "__main__":
    main()
