"""Coverage-guided fuzzing of what reads hostile bytes; see README.md."""
