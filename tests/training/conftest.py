from pathlib import Path

import pytest

from tests.runs import poro, write_llama, write_tokens


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with token files `fi` and `en`, a Llama `hf` and its Megatron checkpoint `start`."""
    folder = tmp_path_factory.mktemp("inputs")
    write_tokens(folder)
    write_llama(folder / "hf")
    poro("convert", "to-megatron", folder / "hf", folder / "start")
    return folder
