"""What a person means by RUN."""

from pathlib import Path


def run_directory_of(path: Path) -> Path:
    """The run directory that a person means: the folder, or that of a run file."""
    if path.suffix == ".toml" and not path.is_dir():
        from megatron_poro.config import load_run

        return Path(load_run(path).run_directory)
    return path
