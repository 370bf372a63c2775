"""Records of runs come in, pages for people go out. Runs on the login host. Nothing is here yet."""
