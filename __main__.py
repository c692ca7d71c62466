"""`python -m rvc_coreml` is the `rvc-coreml` command."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="rvc-coreml")
