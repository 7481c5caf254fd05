"""Write the golden losses anew: `python -m tests.golden.write` from the repository's root."""

import json
import tempfile
from pathlib import Path

from tests.runs import poro, write_llama, write_tokens
from tests.training.test_layouts import GOLDEN, train_20_steps


def main() -> None:
    """Train the tiny run on one process and keep its losses and gradient norms."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokens(folder)
        write_llama(folder / "hf")
        poro("convert", "to-megatron", folder / "hf", folder / "start")
        GOLDEN.write_text(json.dumps(train_20_steps(folder, folder, {}), indent=1) + "\n")


if __name__ == "__main__":
    main()
