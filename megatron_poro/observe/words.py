"""Numbers as people say them."""


def format_seconds(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 2 d 3 h 04 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    days, rest = divmod(round(seconds / 60), 1440)
    return (f"{days} d " if days else "") + f"{rest // 60} h {rest % 60:02d} min"
