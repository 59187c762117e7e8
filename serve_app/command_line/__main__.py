"""`python -m serve_app.command_line` is the same as `parakeet-serve`."""

from serve_app.command_line import main

if __name__ == "__main__":
    main(prog_name="parakeet-serve")
