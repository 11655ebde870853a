"""Jobs, transcripts, deliveries and usage as rows, in SQLite or PostgreSQL."""
