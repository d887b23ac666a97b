"""Words that several commands take."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError

from prunepass.errors import UsageError


def model_arguments(parser: ArgumentParser) -> None:
    """The model and how it is loaded."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="timm/NAME, hf/FOLDER-or-ID, prunepass/NAME or path/to/file.py:function",
    )
    parser.add_argument(
        "--weights",
        default="pretrained",
        help="pretrained (default), random, or a file (safetensors, or torch with weights only)",
    )
    parser.add_argument("--mean", type=triple, metavar="R,G,B", help="overrides the model's own")
    parser.add_argument("--std", type=triple, metavar="R,G,B", help="overrides the model's own")
    parser.add_argument("--crop", type=float, metavar="SHARE", help="overrides the model's own")


def planning_arguments(parser: ArgumentParser) -> None:
    """What is to be done to the model."""
    parser.add_argument("--method", help="see `prunepass methods`; default weighted-merge")
    parser.add_argument(
        "--flops", type=float, metavar="R", help="MACs wanted, relative to the dense model: (0, 1]"
    )
    parser.add_argument(
        "--drop-layers", metavar="N", help="so many of the least important layers, or their names"
    )
    parser.add_argument("--score", metavar="S", help="which layers go; see `prunepass layers -h`")
    parser.add_argument(
        "--target", metavar="COST<=X", help="the planner decides: flops, latency, memory, tokens"
    )
    parser.add_argument("--floor", metavar="QUALITY", help="agreement>=A, kl<=K or top1>=T")
    parser.add_argument("--action", choices=("drop", "merge"), help="overrides the method's own")
    parser.add_argument("--at", type=blocks, metavar="B,B,...", help="blocks, counted from 0")
    parser.add_argument(
        "--keep",
        metavar="K,K,...",
        help="shares of tokens that stay at each block of --at; of image tokens also high or low; "
        "of a language model, the share of inputs that its linear layers read",
    )
    parser.add_argument(
        "--option", action="append", metavar="NAME=VALUE", help="an option of the method's rule"
    )
    parser.add_argument(
        "--images", metavar="DIR", help="search the schedule on these pictures (no labels needed)"
    )
    parser.add_argument(
        "--minutes", type=float, default=5.0, metavar="M", help="time limit of the search (5)"
    )


def batch_size(text: str) -> int | None:
    """A batch size: a positive number, or `dynamic` for None.

    Raises:
        UsageError: It is neither.
    """
    if text == "dynamic":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UsageError(f"--batch {text!r} is no batch size", found=text, fix="--batch 8")


def triple(text: str) -> tuple[float, ...]:
    """Three numbers, or one for all three."""
    parts = tuple(float(part) for part in text.split(","))
    if len(parts) == 1:
        parts *= 3
    if len(parts) != 3:
        raise ArgumentTypeError("three numbers with commas between, or one")
    return parts


def blocks(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between."""
    return tuple(int(part) for part in text.split(","))
