"""`python -m sift_attention.eval`: see --help."""

import signal
import sys
from pathlib import Path

from .arguments import listing, parser
from .options import Options, RefusedError
from .run import evaluate
from .workers import WorkerError

_CONTINUE = "what is finished is kept, and the same command continues"


def main() -> int:
    """Evaluate as the command line says; returns an exit status."""
    made = parser()
    arguments = made.parse_args()
    if (shown := listing(arguments)) is not None:
        print(shown)
        return 0
    if arguments.out is None:
        made.error("--out must name a folder, got none")
    # Jobs in the background begin without the first; schedulers send the second.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        results = evaluate(Options(**vars(arguments)))
    except RefusedError as error:
        print(error, file=sys.stderr)
        return 2
    except WorkerError as error:
        print(f"eval: {error}; {_CONTINUE}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\neval: stopped; {_CONTINUE}.", file=sys.stderr)
        return 130
    for refused in results["refused"]:
        print("refused: {task} at {length} tokens, {reason}".format(**refused))
    print(f"{len(results['cells'])} cells; report: {Path(arguments.out) / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
