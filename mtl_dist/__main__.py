"""What is done with a finished run: `python -m mtl_dist COMMAND ...`."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from mtl_dist.errors import TrainingError, UserError, did_you_mean
from mtl_dist.startup import without_garbage_collection

COMMANDS: dict[str, tuple[str, str]] = {
    "report": ("cli.report", "one HTML page on a run, or on several compared"),
    "predict": ("inference.predict", "labels and scores of one task for texts in a file"),
    "evaluate": ("inference.evaluate", "figures on the test split or on other labelled data"),
    "export": ("inference.export", "a folder for transformers.pipeline or sentence-transformers"),
    "push": ("inference.push_to_hub", "uploads the model, or an exported folder, to the Hugging Face hub"),
}
"""Of each command, the module whose `main(arguments)` carries it out, and what it does."""


def main(arguments: Sequence[str]) -> int:
    """Carries one command out; returns the exit code. An error of ours is one line."""
    try:
        name = arguments[0] if arguments else "--help"
        if name == "--help":
            print("usage: python -m mtl_dist COMMAND ..., each with its own --help\n")
            print("\n".join(f"  {command:10} {does}" for command, (_, does) in COMMANDS.items()))
            return 0
        if name not in COMMANDS:
            raise UserError(f"command line: {name}: unknown command{did_you_mean(name, COMMANDS)}")
        # No command uses DeepSpeed, which transformers loads as it saves, and which else warns of a missing GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # Imported by name because most commands need torch, and --help should not wait for it.
        with without_garbage_collection():
            module = import_module(f"mtl_dist.{COMMANDS[name][0]}")
        module.main(arguments[1:])
    except (UserError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
