"""What the user asked for cannot work."""

__all__ = ["Refused"]


class Refused(ValueError):
    """One sentence for the user: what was wrong, where, and what would be right."""
