"""What the command line does, one command a file.

Each file has `arguments(parser)`, what the command takes, and `run(words, say=)`, which does it and
returns plain data for `--json`; `--json` and `--quiet` belong to every command. Only the file of
the command that was asked for is imported.
"""

COMMANDS = {
    "inspect": "list what can be reduced in a model, and where",
    "methods": "list methods and rules with their sources",
    "layers": "score the layers of a model by importance",
    "plan": "make a plan and write it to a file",
    "compile": "compile a model into a bundle",
    "doctor": "tell what will fail in a graph before an engine is built",
    "generate": "answer a prompt with a bundle",
    "bench": "time bundles: dense against compressed, or several side by side",
    "profile": "tell where the time of a bundle's engines goes",
    "eval": "quality of a bundle on labelled pictures",
    "verify": "compare a bundle in all backends that run here",
    "export": "write a bundle into a model repository of NVIDIA Triton",
    "show": "draw which patches of a picture stay, or are merged",
    "report": "write what a bundle is and does as one HTML file",
}
"""Names and what they do; `prunepass.commands.NAME` is the file."""
