"""`tracekit record` in a process whose files may not grow beyond a limit: python limited.py MODEL OUTPUT BYTES."""

import resource
import signal
import sys
from pathlib import Path

from experiments.cli.main import main


def limit(nbytes: int) -> None:
    """Let writes fail, rather than kill, as they do on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))


if __name__ == "__main__":
    model, output = Path(sys.argv[1]), sys.argv[2]
    limit(int(sys.argv[3]))
    arguments = [str(model), "--prompts", str(model / "long.jsonl"), "--output", output, "--max-new-tokens", "2"]
    sys.argv = ["tracekit", "record", *arguments, "--batch-size", "8", "--shard-rows", "1", "--logits"]
    sys.exit(main())
