"""Records of runs come in, pages and tables for people go out. Runs on the login host."""
