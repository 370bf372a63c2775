"""Records -> tables. Runs on the login host."""
