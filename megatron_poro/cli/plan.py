"""`poro plan`: parse, plan, print."""

import argparse
import json
from pathlib import Path


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "plan",
        help="memory, time, days, disk and cost of a run on a cluster, before it is submitted",
        description="Plan RUN.toml, or a model by its name, on a cluster; --model alone takes the fastest layout that fits.",
    )
    parser.add_argument("run_file", metavar="RUN.toml", type=Path, nargs="?", help="the run file; or --model")
    parser.add_argument(
        "overrides", metavar="section.key=value", nargs="*", default=[], help="values that replace the run file's (TOML)"
    )
    parser.add_argument("--model", default="", help="a shape by its name instead of a run file, for example llama3.1-70b")
    parser.add_argument("--tokens", default="", help="tokens of the run, for example 165.5e9")
    parser.add_argument(
        "--cluster",
        default="lumi",
        help="lumi (default), generic-a100, -h100, -h200, -mi300x, or a .toml file of your own",
    )
    parser.add_argument("--nodes", type=int, help="nodes; by default what parallel.data asks for")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--explain", action="store_true", help="every term, and where its numbers come from")
    parser.add_argument("--exact", action="store_true", help="count parameters on the real model, a rank of each stage")
    parser.add_argument("--search", action="store_true", help="rank all layouts that fit, and say why the next ones lose")
    parser.add_argument("--context", action="store_true", help="with --search: layouts with a context axis too")
    parser.add_argument("--show", type=int, default=10, metavar="N", help="with --search: how many to show (10)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the planned layout into a run file")
    parser.add_argument("--scale", metavar="FIRST..LAST", help="strong and weak scaling over so many devices, for example 64..4096")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="with --scale: the same as a picture")
    parser.add_argument("--timeline", type=Path, metavar="FILE.svg", help="the pipeline's schedule as a picture")
    parser.add_argument("--straggler", metavar="STAGE:FACTOR", help="with --timeline: a stage that is slower")
    parser.add_argument("--price", type=float, help="price of a billed GPU-hour")
    parser.add_argument("--failures-per-1000-node-days", type=float, dest="failures", help="by default the profile's")
    parser.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    from megatron_poro.planning import answer
    from megatron_poro.planning.pictures import draw_scaling, draw_timeline

    question = answer.question_of(args.run_file, args.overrides, model=args.model, tokens=args.tokens)
    found = answer.find(
        question,
        answer.Options(
            cluster=args.cluster,
            nodes=args.nodes,
            search=args.search,
            context=args.context,
            failures=args.failures,
            price=args.price,
        ),
    )
    if args.json:
        print(json.dumps(answer.as_json(found, scale=args.scale, exact=args.exact, show=args.show), indent=1))
    else:
        print(answer.as_text(found, explain=args.explain, exact=args.exact, scale=args.scale, show=args.show))
    if args.write:
        answer.write(found, args.write)
    if args.timeline:
        args.timeline.write_text(draw_timeline(*answer.timeline(found, args.straggler)), encoding="utf-8")
    if args.plot:
        args.plot.write_text(
            draw_scaling(*answer.scaling(found, args.scale), f"{found.plan.profile.name}: scaling"), encoding="utf-8"
        )
    return 0
