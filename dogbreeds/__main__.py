"""The console script `dogbreeds`: `dogbreeds <command> …` is `python -m dogbreeds.<command> …`.

It imports neither TensorFlow nor Hydra, so that help and a mistyped command are answered at once.
"""

import os
import runpy
import sys

from dogbreeds.core.text import most_similar

# Each command, a module of this package, in the order in which a user meets them.
COMMANDS = {
    "train": "run one experiment, or several with --multirun",
    "table": "compare recorded attempts with what a guide claims of them",
    "ui": "open MLflow's page of the runs, on a view that compares them",
    "evaluate": "score a trained network on a split, or on a folder of images",
    "compare": "test two runs image by image, overall and by class",
    "predict": "classify images; explain=true draws Grad-CAM",
    "export": "write a trained network in checked formats, and register it",
    "why": "find which settings of an experiment made the difference",
    "soup": "average the weights of several fine-tunes, without training",
    "probe": "compare backbones on your images, before any training",
    "audit": "list what is wrong with your images: copies, labels, outliers",
    "judge": "give the verdict of any training, from its learning curves",
    "extract": "fill the feature cache for later runs, in one job or in shards",
    "cache": "list the feature cache, or empty it",
    "pretrain": "pretrain the miniature backbone on drawn dogs",
}
_HELP_OPTIONS = ("--help", "-h")


def main() -> None:
    """Run the command that the first argument names."""
    name, *arguments = sys.argv[1:] or _HELP_OPTIONS[:1]
    if name in _HELP_OPTIONS:
        print(_help())
        return
    if name not in COMMANDS:
        sys.exit(f"error: {_unknown_command(name)}")
    # As with `python -m`, where the modules of the current folder can be imported.
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()
    sys.argv[1:] = arguments
    # The command's module becomes the main module, by which launchers find its task in other processes.
    runpy.run_module(f"{__package__}.{name}", run_name="__main__", alter_sys=True)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {line}" for name, line in COMMANDS.items()]
    return "\n".join(
        [
            "Transfer-learning experiments in Keras.",
            "",
            "dogbreeds <command> [group=option] [group.key=value]",
            "",
            *lines,
            "",
            "dogbreeds <command> --help lists the settings of a command, with examples.",
        ]
    )


def _unknown_command(name: str) -> str:
    return (
        f"{name} is not a command. The commands are {', '.join(COMMANDS)}. Type dogbreeds"
        f" {most_similar(name, COMMANDS)}, or dogbreeds --help."
    )


if __name__ == "__main__":
    main()
