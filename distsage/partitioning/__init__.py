"""Graph -> parts on disk. Runs on the login host."""
