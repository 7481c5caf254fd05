import io
import sys

from data_indexing.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_file_gets_one_closing_line(capsys):
    with progress("tokenize", 3_000_000, "B") as advance:
        advance(1_000_000)
        advance(1_500_000)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tokenize: 2.5 MB in 0.0 s (")


def test_a_terminal_gets_a_bar_with_amount_rate_and_time_left(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("merge", 2_000, "B") as advance:
        advance(500)
    shown = terminal.getvalue()
    assert "merge" in shown
    assert "500 B of 2.0 kB" in shown
    assert "B/s" in shown
    assert " left" in shown


def test_on_a_narrow_terminal_the_note_gives_way(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with progress("to-megatron", 2_000_000_000, "B") as advance:
        advance(500_000_000, "model.layers.31.post_attention_layernorm.weight")
    shown = terminal.getvalue()
    assert all(text in shown for text in ("to-megatron", "500.0 MB of 2.0 GB", "B/s", " left, mod", "…"))


def test_a_failure_prints_no_closing_line(capsys):
    try:
        with progress("merge", 1, "B"):
            raise KeyError
    except KeyError:
        assert capsys.readouterr().err == ""
