"""Name or path -> Graph. Runs on the login host and in the local run."""
