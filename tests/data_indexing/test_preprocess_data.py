"""Megatron's flags, as an old script gives them."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_indexing.format import bin_path
from data_indexing.manifest import load_manifest
from data_indexing.reader import IndexedReader
from tests.shared_data import shared

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "examples" / "slurm" / "tokenize.sbatch"


def preprocess(*words, code=0, **more):
    command = [sys.executable, str(REPOSITORY / "tools" / "preprocess_data.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **more)
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.fixture
def flags(byte_tokenizer, tmp_path):
    byte_tokenizer.save_hf(tmp_path / "tokenizer")
    return ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tmp_path / "tokenizer", "--workers", 1]


def test_the_output_has_megatrons_names_one_for_each_key(write_lines, tmp_path, flags, byte_tokenizer):
    path = write_lines([{"text": "ab", "title": "c"}] * 30)
    shown = preprocess(
        "--input", path, "--output-prefix", tmp_path / "p", "--json-keys", "text", "title", "--log-interval", 10, *flags
    )
    for key, text in (("text", "ab"), ("title", "c")):
        with IndexedReader(tmp_path / f"p_{key}_document") as reader:
            assert reader.document(29).tolist() == byte_tokenizer.encode_batch([text])[0]
    assert "Processed 30 documents (" in shown
    # As there, an output is replaced.
    preprocess("--input", path, "--output-prefix", tmp_path / "p", "--append-eod", *flags)
    with IndexedReader(tmp_path / "p_text_document") as reader:
        assert reader.document(0).tolist() == [*byte_tokenizer.encode_batch(["ab"])[0], 257]


def test_bos_stands_where_the_tokenizer_itself_puts_it(write_lines, tmp_path):
    words = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", shared("tokenizers/llama3"), "--workers", 2]
    preprocess("--input", write_lines([{"text": "Hei"}]), "--output-prefix", tmp_path / "p", "--append-eod", *words)
    manifest = load_manifest(tmp_path / "p_text_document")
    assert manifest is not None
    assert manifest.policy is not None
    assert (manifest.policy.bos_id, manifest.policy.eod_id) == (128_000, 128_001)


def test_sentences_are_split_by_the_tables_in_nltk_data(write_lines, tmp_path, flags):
    path = write_lines([{"text": "One. Two."}])
    words = ["--input", path, "--output-prefix", tmp_path / "p", "--split-sentences", *flags]
    preprocess(*words, env={"NLTK_DATA": str(shared("nltk_data"))})
    with IndexedReader(tmp_path / "p_text_sentence") as reader:
        assert reader.sequence_lengths.tolist() == [4, 4]


def test_mistakes_are_a_line_and_a_code(write_lines, tmp_path, flags):
    path = write_lines([{"text": "a"}, b"{"])
    assert "error: 1 of 2 documents rejected" in preprocess("--input", path, "--output-prefix", tmp_path / "p", *flags, code=3)
    assert not bin_path(tmp_path / "p_text_document").exists()
    assert "No such file" in preprocess("--input", tmp_path / "none", "--output-prefix", tmp_path / "p", *flags, code=2)
    flags[1] = "GPT2BPETokenizer"
    assert "invalid choice" in preprocess("--input", path, "--output-prefix", tmp_path / "p", *flags, code=2)


@pytest.mark.parametrize("interval", ["0", "-1", "x"])
def test_an_interval_that_makes_no_sense_is_refused(write_lines, tmp_path, flags, interval):
    path = write_lines([{"text": "a"}])
    shown = preprocess("--input", path, "--output-prefix", tmp_path / "p", "--log-interval", interval, *flags, code=2)
    assert "is not a number of at least 1" in shown


def test_an_interrupt_and_an_error_of_the_system_are_codes_without_a_traceback(write_lines, tmp_path, flags):
    path = write_lines([{"text": "a"}])
    words = ["preprocess_data.py", "--input", path, "--output-prefix", tmp_path / "p", *flags]
    for raised, code, shown in (
        ("KeyboardInterrupt", 130, ""),
        ("OSError(28, 'No space left', 'x.bin')", 2, "error: x.bin: No space left"),
    ):
        program = f"""
import sys
sys.path.insert(0, {str(REPOSITORY / "tools")!r})
import preprocess_data
def stop(*_, **__):
    raise {raised}
preprocess_data.tokenize_files = stop
sys.argv = {list(map(str, words))}
sys.exit(preprocess_data.main())
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=REPOSITORY)
        assert (done.returncode, done.stderr.strip()) == (code, shown)


def test_the_job_array_writes_a_pair_for_each_element_and_skips_what_is_done(write_lines, tmp_path):
    (tmp_path / "in").mkdir()
    write_lines([{"text": f"rivi {number}"} for number in range(9)], "in/a.jsonl")
    (tmp_path / "srun").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (tmp_path / "poro").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m megatron_poro "$@"\n')
    for program in ("srun", "poro"):
        (tmp_path / program).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "PYTHONPATH": str(REPOSITORY),
        "INPUT": str(tmp_path / "in"),
        "OUTPUT": str(tmp_path / "out"),
        "TOKENIZER": str(shared("tokenizers/llama3")),
        "SHARDS": "2",
        # That of the elements submitted together, which may be one that is submitted again.
        "SLURM_ARRAY_TASK_COUNT": "1",
        "SLURM_CPUS_PER_TASK": "1",
    }
    for element in ("0", "1", "1"):
        subprocess.run(["bash", SCRIPT], env={**environment, "SLURM_ARRAY_TASK_ID": element}, check=True, capture_output=True)
    counts = []
    for prefix in (tmp_path / "out" / "00000", tmp_path / "out" / "00001"):
        with IndexedReader(prefix) as reader:
            counts.append(reader.num_documents)
    assert sum(counts) == 9
    assert min(counts) > 0
