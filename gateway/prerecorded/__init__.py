"""Whole recordings: at once, by a job, by a live session, or by Deepgram's callback."""
