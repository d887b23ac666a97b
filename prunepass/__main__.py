"""The command line: inspect, methods, layers, plan, compile, generate, bench, eval."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from prunepass.errors import PrunepassError

_ERROR = "prunepass: "


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 model or plan, 2 usage, 3 backend."""
    parser = _parser()
    words = parser.parse_args(arguments)
    if words.command is None:
        parser.print_help()
        return 2
    from prunepass import commands

    try:
        result = getattr(commands, words.command)(words, say=_say(words))
    except PrunepassError as error:
        print(f"{_ERROR}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{_ERROR}interrupted", file=sys.stderr)
        return 130
    if getattr(words, "json", False):
        print(json.dumps(result))
    return 0


def _say(words: argparse.Namespace) -> Callable[..., None]:
    """Prints to a person; with --json everything goes to standard error instead."""
    stream = sys.stderr if getattr(words, "json", False) else sys.stdout
    start = time.perf_counter()

    def say(text: str, *, stage: bool = False) -> None:
        if getattr(words, "quiet", False) and stage:
            return
        prefix = f"[{time.perf_counter() - start:6.1f} s] " if stage else ""
        print(prefix + text, file=stream, flush=True)

    return say


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prunepass",
        description="Compiles vision models into smaller, faster engines, with token reduction "
        "inside the exported graph.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    inspect = commands.add_parser("inspect", help="list what can be reduced in a model, and where")
    _model(inspect)
    inspect.add_argument("--json", action="store_true", help="print one JSON object")

    methods = commands.add_parser("methods", help="list methods and rules with their sources")
    methods.add_argument("--json", action="store_true", help="print one JSON object")

    layers = commands.add_parser("layers", help="score the layers of a model by importance")
    _model(layers)
    layers.add_argument(
        "--score", default="lim", metavar="S,S,...",
        help="lim (default), zd, bi, ecoflap, ecoflap-first, suppress, wpca",
    )  # fmt: skip
    layers.add_argument("--images", metavar="DIR", help="pictures to score on (zd needs none)")
    layers.add_argument("--texts", metavar="FILE", help="prompts to score on, one a line")
    layers.add_argument("--branches", action="store_true", help="attention and MLP apart")
    layers.add_argument(
        "--tap", choices=("block", "module"), default="block",
        help="lim and bi over the boundary (block, default), or of what a branch adds (module)",
    )  # fmt: skip
    layers.add_argument("--plot", metavar="FILE", help="write a picture, .svg")
    layers.add_argument("--checkpoint", metavar="FILE", help="go on from where a run stopped")
    layers.add_argument("--quiet", action="store_true", help="say less")
    layers.add_argument("--json", action="store_true", help="print one JSON object")

    plan = commands.add_parser("plan", help="make a plan and write it to a file")
    _model(plan)
    _planning(plan, required=True)
    plan.add_argument("-o", "--output", required=True, metavar="FILE", help="plan.json to write")
    plan.add_argument("--force", action="store_true", help="replace the file if it is there")
    plan.add_argument("--quiet", action="store_true", help="say less")

    compile_ = commands.add_parser("compile", help="compile a model into a bundle")
    _model(compile_)
    _planning(compile_, required=False)
    compile_.add_argument("--plan", metavar="FILE", help="carry out this plan")
    compile_.add_argument("--backend", default="onnx", help="onnx (default), aot_inductor or eager")
    compile_.add_argument("--batch", default="dynamic", help="a batch size, or dynamic (default)")
    compile_.add_argument(
        "--rotate", action="store_true", default=None,
        help="of a language model: rotate it first, so that k and gate have orthogonal columns",
    )  # fmt: skip
    compile_.add_argument(
        "--smallest", type=int, metavar="N", help="numbers of a weight below which it stays dense"
    )
    compile_.add_argument("--dtype", help="of a language model: float32 (default) or bfloat16")
    compile_.add_argument(
        "--after", type=_blocks, metavar="L,L,...", help="layers behind which they go, from 1"
    )
    compile_.add_argument(
        "--texts",
        metavar="FILE",
        help="texts to score layers or to calibrate on, one a line",
    )
    compile_.add_argument("--positions", choices=("keep_original", "compact"))
    compile_.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="where a model takes any size"
    )
    compile_.add_argument("-o", "--output", required=True, metavar="DIR", help="bundle to write")
    compile_.add_argument("--force", action="store_true", help="replace the bundle if it is there")
    compile_.add_argument("--quiet", action="store_true", help="say less")
    compile_.add_argument("--json", action="store_true", help="print the report as JSON")

    generate = commands.add_parser("generate", help="answer a prompt with a bundle")
    generate.add_argument("bundle", metavar="DIR", type=Path)
    generate.add_argument("--image", action="append", metavar="FILE", help="a picture, or several")
    asked = generate.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", metavar="TEXT")
    asked.add_argument(
        "--tokens", type=_blocks, metavar="N,N,...", help="token numbers, of a language model"
    )
    generate.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    generate.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: greedy")
    generate.add_argument("--top-k", type=int, metavar="N")
    generate.add_argument("--top-p", type=float, metavar="P")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--threads", type=int, metavar="N")
    generate.add_argument("--device", default="cpu", help="cpu (default) or cuda, of ONNX Runtime")
    generate.add_argument("--json", action="store_true", help="print one JSON object")

    bench = commands.add_parser("bench", help="time a bundle: dense against compressed")
    bench.add_argument("bundle", metavar="DIR", type=Path)
    bench.add_argument("--batch", type=int, nargs="+", default=[1, 8], metavar="N")
    bench.add_argument("--threads", type=int, metavar="N", help="threads (default: the library's)")
    bench.add_argument("--runs", type=int, default=30, metavar="N", help="runs of each (30)")
    bench.add_argument("--json", action="store_true", help="print one JSON object")

    evaluate = commands.add_parser("eval", help="quality of a bundle on labelled pictures")
    evaluate.add_argument("bundle", metavar="DIR", type=Path)
    evaluate.add_argument("--images", required=True, metavar="DIR", help="folder of pictures")
    evaluate.add_argument("--limit", type=int, metavar="N", help="use N of the pictures")
    evaluate.add_argument("--mean", type=_triple, metavar="R,G,B")
    evaluate.add_argument("--std", type=_triple, metavar="R,G,B")
    evaluate.add_argument("--crop", type=float, metavar="SHARE")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _model(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--mean", type=_triple, metavar="R,G,B", help="overrides the model's own")
    parser.add_argument("--std", type=_triple, metavar="R,G,B", help="overrides the model's own")
    parser.add_argument("--crop", type=float, metavar="SHARE", help="overrides the model's own")


def _planning(parser: argparse.ArgumentParser, *, required: bool) -> None:
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
    parser.add_argument("--at", type=_blocks, metavar="B,B,...", help="blocks, counted from 0")
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


def _triple(text: str) -> tuple[float, ...]:
    parts = tuple(float(part) for part in text.split(","))
    if len(parts) == 1:
        parts *= 3
    if len(parts) != 3:
        raise argparse.ArgumentTypeError("three numbers with commas between, or one")
    return parts


def _blocks(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
