"""Gateway: live audio in, Deepgram's results out; no word lost, none twice, one clock."""

__version__ = "0.1.0"
